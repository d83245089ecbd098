"""The order of strings as numbers. Each of NumPy's own strings takes four bytes times the length of the longest."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def text_ranks(texts: np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64, of the shape of `texts` (str objects, or Arrow strings): ascending as the texts are, equal for equal ones.

    Texts are ordered by their code points, as Python does it.
    """
    is_objects = isinstance(texts, np.ndarray)
    values = pa.array(texts.ravel(), pa.large_string()) if is_objects else texts
    ranks: np.ndarray = pc.rank(values, tiebreaker="dense").to_numpy().astype(np.int64)
    return ranks.reshape(texts.shape) if is_objects else ranks
