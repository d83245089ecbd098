"""What training reads: pairs, the texts of their items and of a sample of the others, and mined negatives.

The catalogue is scanned part by part, so that no process holds more than one part and what is picked from it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.errors import DataError
from jobs.inputs.catalogue import Source
from jobs.inputs.items import scan_items
from jobs.inputs.rows import RowRules
from jobs.run import Run
from jobs.training.encoder.negatives import Mined
from jobs.training.encoder.pairs import METADATA_QUERIES, PAIRS, clicked_pairs, metadata_pairs, reformulated_pairs
from jobs.workspace.artifact import Artifact
from jobs.workspace.parquet import parquet_bytes

POOL_ROWS = 100_000
"""Items, chosen by hash, that metadata queries and uniform negatives come from; pairs bring their own."""

DATA_FILES = ("pairs.parquet", "items.parquet")


@dataclass(frozen=True)
class TrainingData:
    pairs: pa.Table
    """`PAIRS`, in a fixed order."""
    items: pa.Table
    """item_id and text, one row an item, by id."""
    hard: np.ndarray
    """int64 (num_pairs, num_hard): rows of `items` that were mined for the pair's query, -1 where there are fewer."""
    num_unknown: int
    """Pairs of the log whose item is not in the catalogue."""


@dataclass(frozen=True, kw_only=True)
class TrainingCounts:
    """The record of the data's artifact."""

    pairs: dict[str, int]
    """By source."""
    num_items: int
    num_unknown: int


def log_pairs(interactions: pa.Table) -> pa.Table:
    """`PAIRS` of the search logs: clicks, and reformulations where sessions are known."""
    return pa.concat_tables([clicked_pairs(interactions), reformulated_pairs(interactions)])


def make_data(run: Run, source: Source, rules: RowRules, pairs: pa.Table, mined: Mined) -> TrainingData:
    """Raises DataError where the catalogue has none of the pairs' items."""
    wanted = pc.unique(pa.chunked_array([*pairs["item_id"].chunks, mined.ids], pa.string())).sort()
    items = scan_items(run, source, rules, wanted, POOL_ROWS)
    is_known = pc.is_in(pairs["item_id"], value_set=items["item_id"].combine_chunks())
    known = pairs.filter(is_known)
    if not known.num_rows:
        raise DataError(f"training.interactions: expected items of the catalogue, got {pairs.num_rows} pairs of others")
    settings = run.config.training
    sources = [name for name, share in settings.shares.items() if share > 0 and name in METADATA_QUERIES]
    made = metadata_pairs(items.filter(items["in_pool"]), sources, settings.seed)
    together = pa.concat_tables([known, made]).sort_by(
        [(name, "ascending") for name in PAIRS.names if name != "weight"]
    )
    items = items.select(["item_id", "text"])
    return TrainingData(together, items, mined.rows(together, items), pairs.num_rows - known.num_rows)


def write_data(artifact: Artifact[TrainingCounts], data: TrainingData) -> None:
    """The record last."""
    hard = (
        pa.FixedSizeListArray.from_arrays(pa.array(data.hard.ravel()), data.hard.shape[1]) if data.hard.size else None
    )
    pairs = data.pairs if hard is None else data.pairs.append_column("hard", hard)
    artifact.store.put(artifact.key("pairs.parquet"), parquet_bytes(pairs))
    artifact.store.put(artifact.key("items.parquet"), parquet_bytes(data.items))
    counts = {row["values"]: row["counts"] for row in pc.value_counts(data.pairs["source"]).to_pylist()}
    artifact.write(TrainingCounts(pairs=counts, num_items=data.items.num_rows, num_unknown=data.num_unknown))


def read_data(artifact: Artifact[TrainingCounts]) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """Pairs, items and hard negatives, as `write_data` has them."""
    tables = []
    for name in DATA_FILES:
        tables.append(pq.read_table(pa.BufferReader(artifact.store.get(artifact.key(name)))))
    pairs, items = tables
    if "hard" not in pairs.column_names:
        return pairs, items, np.empty((pairs.num_rows, 0), np.int64)
    hard = pairs["hard"].combine_chunks()
    return pairs.drop_columns(["hard"]), items, hard.flatten().to_numpy().reshape(len(hard), -1)
