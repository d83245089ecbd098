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


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """(int32 (num_rows,): one number per distinct value; these values, by number, in order of first appearance).

    Without nulls. Chunks are not joined.
    """
    chunks = column.dictionary_encode().chunks  # all of one dictionary
    found: np.ndarray = pa.chunked_array([chunk.indices for chunk in chunks], pa.int32()).to_numpy()
    return found, chunks[0].dictionary if chunks else pa.array([], column.type)


def sorted_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """The same with texts in ascending order, and their numbers with them. Only the distinct texts are compared."""
    found, texts = numbers(column)
    order = pc.sort_indices(texts).to_numpy()
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return places[found], texts.take(pa.array(order))
