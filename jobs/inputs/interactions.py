"""The interactions contract: what a search log must contain before pairs are made from it."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.contract import conform_table, is_blank, require_names, require_types
from indexing.errors import ConfigError, DataError
from indexing.search.queries import MAX_QUERY_CHARACTERS
from indexing.store import ObjectInfo, S3Settings, Store
from jobs.inputs.batches import read_batches
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
TEXTS = [field.name for field in INTERACTIONS if pa.types.is_string(field.type)]
MAX_CHARACTERS = MAX_QUERY_CHARACTERS
"""Of a text: nobody can search for a longer one."""
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
    tables = [INTERACTIONS.empty_table()]
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for info in files:
        first_row = 1
        for table in read_file(store, info):
            is_good = pc.is_null(table["reason"])
            tables.append(table.filter(is_good).drop_columns("reason"))
            for row in np.flatnonzero(pc.invert(is_good)):
                reason = table["reason"][row].as_py()
                reasons[reason] += 1
                examples.setdefault(reason, f"row {first_row + row} of {store.describe(info.key)}")
            first_row += table.num_rows
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


def read_file(store: Store, info: ObjectInfo) -> Iterator[pa.Table]:
    """The rows of a file as INTERACTIONS, a batch at a time, with `reason`: why a row is bad, null where it is not."""
    source = store.describe(info.key)
    with open_listed(store, info) as file:
        _, schema = read_footer(file, source)
        check_schema(schema, source)
        with parquet_errors(source):
            unit = find_unit(file, schema, source)
            names = [name for name in INTERACTIONS.names if name in schema.names]
            for batch in read_batches(file, columns=names):
                yield check_rows(conform(batch, unit))


def check_schema(schema: pa.Schema, source: str) -> None:
    """Raises DataError naming `source` and a column that is missing, repeated or of a type that does not convert."""
    number = schema.get_field_index("timestamp")
    if number >= 0 and pa.types.is_timestamp(schema.field(number).type):
        schema = schema.set(number, INTERACTIONS.field("timestamp"))  # `conform` reads it
    require_names(schema.names, REQUIRED, source)
    require_types(schema, INTERACTIONS, source)


def find_unit(file: BinaryIO, schema: pa.Schema, source: str) -> str | None:
    """The unit of the numbers in column `timestamp`: that in which their median is between the years 2000 and 2100.

    None where there are none. Raises DataError where it is no unit.
    """
    number = schema.get_field_index("timestamp")
    if number < 0 or pa.types.is_timestamp(schema.field(number).type):
        return None
    contract = pa.schema([INTERACTIONS.field("timestamp")])
    batches = read_batches(file, columns=["timestamp"])
    times = [conform_table(batch, contract, contract)["timestamp"].drop_null().to_numpy() for batch in batches]
    known = np.concatenate([np.zeros(0), *times])
    if not len(known):
        return None
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
    return units[0]


def conform(table: pa.Table, unit: str | None) -> pa.Table:
    """`table` with the columns of INTERACTIONS and `reason`; where one is missing, weight 1 and otherwise nulls.

    `unit`: that of the numbers in `timestamp`, if it has numbers.
    """
    if "weight" not in table.column_names:
        table = table.append_column("weight", pa.repeat(1.0, table.num_rows))
    number = table.schema.get_field_index("timestamp")
    if number >= 0 and pa.types.is_timestamp(table.schema.field(number).type):  # without a time zone it counts as UTC
        ticks_per_second = TICKS_PER_SECOND[table.schema.field(number).type.unit]
        ticks = table["timestamp"].cast(pa.int64()).cast(pa.float64(), safe=False)
        table = table.set_column(number, "timestamp", pc.divide(ticks, ticks_per_second))
    table = conform_table(table, INTERACTIONS, INTERACTIONS)
    return in_seconds(table, unit) if unit else table


def in_seconds(table: pa.Table, unit: str) -> pa.Table:
    """`table` with `timestamp`, which is in `unit`, as unix seconds; rows outside `YEARS_S` are bad."""
    times = pc.divide(table["timestamp"], TICKS_PER_SECOND[unit])
    is_other = pc.fill_null(pc.or_(pc.less(times, YEARS_S[0]), pc.greater_equal(times, YEARS_S[1])), False)
    reason = f"timestamp is not in {unit}, as the others are, between the years 2000 and 2100"
    table = table.set_column(table.column_names.index("timestamp"), INTERACTIONS.field("timestamp"), times)
    return with_reasons(table, pc.if_else(is_other, reason, None))


def check_rows(table: pa.Table) -> pa.Table:
    """`table` with a reason for each invalid row."""
    weight = table["weight"]
    is_weight = pc.fill_null(pc.and_(pc.is_finite(weight), pc.greater_equal(weight, 0)), False)
    is_long = {name: pc.greater(pc.utf8_length(table[name]), MAX_CHARACTERS) for name in TEXTS}
    found = pc.case_when(
        pc.make_struct(
            is_blank(table["query"]), is_blank(table["query_group"]), pc.invert(is_weight), *is_long.values()
        ),
        "query is null or blank",
        "query_group is null or blank",
        "weight is missing, negative or not finite",
        *(f"{name} is longer than {MAX_CHARACTERS:,} characters" for name in is_long),
        pa.scalar(None, pa.string()),
    )
    return with_reasons(table, found)


def with_reasons(table: pa.Table, found: pa.ChunkedArray) -> pa.Table:
    """`table` with the reasons `found`, where it has none yet."""
    return table.set_column(table.column_names.index("reason"), "reason", pc.coalesce(table["reason"], found))


def check_split(log: pa.Table, held_back: pa.Table) -> None:
    """Raises DataError where a query group is in both: then the evaluation would measure what was memorised."""
    groups = pc.unique(held_back["query_group"])
    both = groups.filter(pc.is_in(groups, value_set=pc.unique(log["query_group"]))).sort()
    if len(both):
        raise DataError(
            f"evaluation.interactions: expected other query groups than training.interactions, got {len(both)} of the "
            f"same, such as {both[0].as_py()!r}"
        )
