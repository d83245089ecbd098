"""The interactions contract: what a search log must contain before pairs are made from it."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.catalogue.contract import conform_table, is_blank, require_names, require_types
from indexing.errors import ConfigError, DataError
from indexing.store import ObjectInfo, S3Settings, Store
from jobs.inputs.files import content_digest, list_files, open_listed, parquet_errors, read_footer
from jobs.workspace.fingerprint import fingerprint

logger = logging.getLogger(__name__)
INTERACTIONS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("weight", pa.float32()),
        pa.field("query_group", pa.string()),
        pa.field("query_kind", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("timestamp", pa.float64()),
        pa.field("user_id", pa.string()),
        pa.field("position", pa.int32()),
    ]
)
"""A row is a click, or, where item_id is null or weight 0, a search that led to nothing. `timestamp`: unix seconds."""
REQUIRED = ("query", "item_id", "query_group")
TICKS_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
YEARS_S = (946_684_800.0, 4_102_444_800.0)
"""2000 and 2100 as unix seconds. Between these years a number determines its unit: no two units' ranges overlap."""


@dataclass(frozen=True)
class Log:
    """A search log, and the files that it was read from."""

    rows: pa.Table
    """As INTERACTIONS."""
    store: Store
    files: tuple[ObjectInfo, ...]

    def fingerprint(self) -> str:
        """Changes with any byte of the files. Raises DataError where one was replaced since it was read."""
        return fingerprint([(info.key, self._digest(info)) for info in self.files])

    def _digest(self, info: ObjectInfo) -> str:
        with open_listed(self.store, info) as file:
            return content_digest(self.store, info, file)


def read_interactions(path: str | None, s3: S3Settings | None, setting: str, max_bad_rows: Callable[[int], int]) -> Log:
    """The good rows of a Parquet file, or of a folder of them, as INTERACTIONS; a missing weight column reads as 1.

    `max_bad_rows`: number of rows → how many of them may be set aside, which a warning counts. Raises ConfigError
    when there is no file (`setting` names the key of the configuration), DataError on a missing column, a type that
    does not convert, timestamps in no recognisable unit, too many bad rows, or no good ones.
    """
    if path is None:
        raise ConfigError(f"{setting}: expected a Parquet file of search logs, got none")
    store, files = list_files(path, s3, setting)
    tables: list[pa.Table] = []
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for info in files:
        table = read_file(store, info)
        is_good = pc.is_null(table["reason"])
        tables.append(table.filter(is_good).drop_columns("reason"))
        for row in np.flatnonzero(pc.invert(is_good)):
            reason = table["reason"][row].as_py()
            reasons[reason] += 1
            examples.setdefault(reason, f"row {row + 1} of {store.describe(info.key)}")
    good = pa.concat_tables(tables)
    check_bad_rows(setting, good.num_rows, reasons, examples, max_bad_rows)
    if not good.num_rows:
        raise DataError(f"{setting}: expected rows at {path}, got none in {len(files)} files")
    return Log(good, store, tuple(files))


def check_bad_rows(
    setting: str, num_good: int, reasons: Counter[str], examples: dict[str, str], max_bad_rows: Callable[[int], int]
) -> None:
    """Warns of bad rows. Raises DataError for more than `max_bad_rows`."""
    num_bad, num_rows = reasons.total(), num_good + reasons.total()
    counts = "; ".join(f"{count}: {reason}, first in {examples[reason]}" for reason, count in sorted(reasons.items()))
    if num_bad > max_bad_rows(num_rows):
        raise DataError(
            f"{setting}: expected at most {max_bad_rows(num_rows)} bad rows (catalogue.max_quarantined), got {num_bad} "
            f"of {num_rows}; {counts}"
        )
    if num_bad:
        logger.warning("%s: %d of %d rows are set aside; %s", setting, num_bad, num_rows, counts)


def read_file(store: Store, info: ObjectInfo) -> pa.Table:
    """All rows of a file as INTERACTIONS, with `reason`: why a row is bad, null where it is not."""
    source = store.describe(info.key)
    with open_listed(store, info) as file:
        _, schema = read_footer(file, source)
        check_schema(schema, source)
        with parquet_errors(source):
            names = [name for name in INTERACTIONS.names if name in schema.names]
            table = pq.ParquetFile(file).read(columns=names)
    return check_rows(conform(table, source))


def check_schema(schema: pa.Schema, source: str) -> None:
    """Raises DataError naming `source` and a column that is missing, repeated or of a type that does not convert."""
    number = schema.get_field_index("timestamp")
    if number >= 0 and pa.types.is_timestamp(schema.field(number).type):
        schema = schema.set(number, INTERACTIONS.field("timestamp"))  # `conform` reads it
    require_names(schema.names, REQUIRED, source)
    require_types(schema, INTERACTIONS, source)


def conform(table: pa.Table, source: str) -> pa.Table:
    """`table` with the columns of INTERACTIONS and `reason`; where one is missing, weight 1 and otherwise nulls."""
    if "weight" not in table.column_names:
        table = table.append_column("weight", pa.repeat(1.0, table.num_rows))
    number = table.schema.get_field_index("timestamp")
    if number >= 0 and pa.types.is_timestamp(table.schema.field(number).type):  # without a time zone it counts as UTC
        unit = table.schema.field(number).type.unit
        ticks = table["timestamp"].cast(pa.int64()).cast(pa.float64(), safe=False)
        table = table.set_column(number, "timestamp", pc.divide(ticks, TICKS_PER_SECOND[unit]))
        return conform_table(table, INTERACTIONS, INTERACTIONS)
    table = conform_table(table, INTERACTIONS, INTERACTIONS)
    return in_seconds(table, source)


def in_seconds(table: pa.Table, source: str) -> pa.Table:
    """`table` with the numbers in `timestamp`, whatever their unit, as unix seconds; those outside `YEARS_S` are bad.

    The unit is that in which the median is between the years 2000 and 2100. Raises DataError where there is none.
    """
    known = table["timestamp"].drop_null().to_numpy()
    if not len(known):
        return table
    median = float(np.quantile(known, 0.5, method="lower"))
    first, last = YEARS_S
    units = [unit for unit, ticks in TICKS_PER_SECOND.items() if first * ticks <= median < last * ticks]
    if not units:
        raise DataError(
            f"{source}: expected column timestamp as unix seconds, or as milli-, micro- or nanoseconds, between the "
            f"years 2000 and 2100, got {median:.17g}; for other times, use a timestamp type"
        )
    if units != ["s"]:
        logger.info("%s: timestamp is read as unix time in %s", source, units[0])
    times = pc.divide(table["timestamp"], TICKS_PER_SECOND[units[0]])
    is_other = pc.fill_null(pc.or_(pc.less(times, first), pc.greater_equal(times, last)), False)
    reason = f"timestamp is not in {units[0]}, as the others are, between the years 2000 and 2100"
    reasons = pc.coalesce(table["reason"], pc.if_else(is_other, reason, None))
    table = table.set_column(table.column_names.index("timestamp"), INTERACTIONS.field("timestamp"), times)
    return table.set_column(table.column_names.index("reason"), "reason", reasons)


def check_rows(table: pa.Table) -> pa.Table:
    """`table` with a reason for each invalid row."""
    weight = table["weight"]
    is_weight = pc.fill_null(pc.and_(pc.is_finite(weight), pc.greater_equal(weight, 0)), False)
    found = pc.case_when(
        pc.make_struct(is_blank(table["query"]), is_blank(table["query_group"]), pc.invert(is_weight)),
        "query is null or blank",
        "query_group is null or blank",
        "weight is missing, negative or not finite",
        pa.scalar(None, pa.string()),
    )
    return table.set_column(table.column_names.index("reason"), "reason", pc.coalesce(table["reason"], found))


def check_split(log: pa.Table, held_back: pa.Table) -> None:
    """Raises DataError where a query group is in both: then the evaluation would measure what was memorised."""
    both = sorted(set(log["query_group"].to_pylist()) & set(held_back["query_group"].to_pylist()))
    if both:
        raise DataError(
            f"evaluation.interactions: expected other query groups than training.interactions, got {len(both)} of the "
            f"same, such as {both[0]!r}"
        )
