"""Which items recall is measured on: distinct vectors, drawn at random, and enough of every small slice.

Items with equal vectors count as one: otherwise one text that thousands of items have would outweigh all others. A
vector is drawn if its hash is among the lowest. So the same vectors are drawn however the items are split into blocks
and shards, and the samples of two parts can be merged into the sample of both.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.quality.slices import MIN_SLICE, slice_rows

TRAITS = pa.schema({"item_type": pa.string(), "language": pa.string(), "popularity": pa.float64()})
"""Columns by which recall is reported separately."""
SLICE_SAMPLES = 50
"""Distinct vectors that are drawn of each item type and language that has as many: enough for a gate."""
MAX_LANGUAGES = 20
"""Languages of a shard that are considered, the most frequent ones: the column may hold anything."""


@dataclass(frozen=True)
class Sample:
    """Distinct vectors of one collection."""

    vectors: np.ndarray
    """float32 (num_samples, dim)."""
    num_random: int
    """The first of them were drawn from all items; those after them were drawn for small slices."""
    slices: dict[str, np.ndarray]
    """Name → bool (num_samples,): see `slice_rows`."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn of some items. A vector whose items have several types or languages has a row of each."""

    keys: np.ndarray
    """uint64 (num_rows,), ascending: `vector_keys`."""
    traits: pa.Table
    """`TRAITS`; the highest popularity of the items that a row stands for."""
    vectors: np.ndarray
    """float32 (num_rows, dim)."""


def read_traits(metadata: pa.Table) -> pa.Table:
    """`TRAITS` of each row; null where the language is not one of the `MAX_LANGUAGES` most frequent ones."""
    traits = metadata.select(TRAITS.names).cast(TRAITS)
    counts = Counter(traits["language"].drop_null().to_pylist())
    common = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_LANGUAGES]
    is_common = pc.is_in(traits["language"], value_set=pa.array(common, pa.string()))
    languages = pc.if_else(is_common, traits["language"], pa.scalar(None, pa.string()))
    return traits.set_column(TRAITS.get_field_index("language"), "language", languages)


def draw(vectors: np.ndarray, traits: pa.Table, num_samples: int) -> Drawn:
    """Of items with these vectors, float32 (num_items, dim), and `TRAITS`."""
    return _keep_lowest(Drawn(vector_keys(vectors), traits, vectors), num_samples)


def merge_drawn(one: Drawn, other: Drawn, num_samples: int) -> Drawn:
    """What `draw` draws of the items of both."""
    keys, vectors = (np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("keys", "vectors"))
    return _keep_lowest(Drawn(keys, pa.concat_tables([one.traits, other.traits]), vectors), num_samples)


def vector_keys(vectors: np.ndarray) -> np.ndarray:
    """uint64 (num_rows,): a hash of each vector, float32 (num_rows, dim); the same on every machine."""
    words = (vectors + np.float32(0)).view(np.uint32)  # -0 is 0
    digest = hashlib.shake_128(b"sample").digest(8 * vectors.shape[1])
    keys: np.ndarray = words.astype(np.uint64) @ (np.frombuffer(digest, "<u8").astype(np.uint64) | np.uint64(1))
    return keys


def _keep_lowest(drawn: Drawn, num_samples: int) -> Drawn:
    """The `num_samples` vectors of lowest keys, and enough of each type and language; a row for each of its traits."""
    keys, popularity = drawn.keys, drawn.traits["popularity"].to_numpy()
    kinds, languages = (_codes(drawn.traits[name]) for name in ("item_type", "language"))
    rows = np.lexsort((-np.where(np.isnan(popularity), -np.inf, popularity), languages, kinds, keys))
    is_first = np.ones(len(rows), bool)
    is_first[1:] = np.any([np.diff(values[rows]) != 0 for values in (keys, kinds, languages)], axis=0)
    rows = rows[is_first]
    is_kept = _ranks(keys[rows]) < num_samples
    for codes in (kinds[rows], languages[rows]):
        for code in range(codes.max(initial=-1) + 1):
            members = np.flatnonzero(codes == code)
            is_kept[members[_ranks(keys[rows[members]]) < SLICE_SAMPLES]] = True
    rows = rows[is_kept]
    return Drawn(keys[rows], drawn.traits.take(rows), drawn.vectors[rows])


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """int32 (num_rows,): a number for each distinct string, -1 for null."""
    codes: np.ndarray = column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    return codes


def _ranks(keys: np.ndarray) -> np.ndarray:
    """int64 (num_keys,): how many distinct keys are lower; `keys` are ascending."""
    ranks: np.ndarray = np.cumsum(np.diff(keys, prepend=keys[:1]) != 0)
    return ranks


def make_sample(drawn: Drawn, num_samples: int) -> Sample:
    _, first, sample_of_row = np.unique(drawn.keys, return_index=True, return_inverse=True)
    num_random = min(num_samples, len(first))
    traits = drawn.traits
    # Head and tail are those of the random items: among the others, some types and languages are overrepresented.
    popularity = np.where(sample_of_row < num_random, traits["popularity"].to_numpy(), np.nan)
    slices = {}
    for name, rows in slice_rows(traits["item_type"].to_pylist(), traits["language"].to_pylist(), popularity).items():
        slices[name] = np.zeros(len(first), bool)
        slices[name][sample_of_row[rows]] = True
    return Sample(
        drawn.vectors[first], num_random, {name: rows for name, rows in slices.items() if rows.sum() >= MIN_SLICE}
    )
