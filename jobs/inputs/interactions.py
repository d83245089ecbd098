"""The interactions contract: what a search log must contain before pairs are made from it."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.catalogue.contract import converts
from indexing.errors import ConfigError, DataError, first_line
from indexing.store import ObjectInfo, S3Settings, Store
from jobs.inputs.parquet import content_digest, list_parquet, open_listed, parquet_errors, read_footer
from jobs.workspace.fingerprint import fingerprint

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


def read_interactions(path: str, s3: S3Settings | None, setting: str) -> Log:
    """All rows of a Parquet file or of a folder of them, as INTERACTIONS; a missing weight column reads as 1.

    Raises ConfigError when there is no file (`setting` names the key of the configuration), DataError on a missing
    column, a type that does not convert, a row without query or query_group, an invalid weight, or no rows.
    """
    store, files = list_parquet(path, s3, setting)
    table = pa.concat_tables([_read_file(store, info) for info in files])
    if not table.num_rows:
        raise DataError(f"{setting}: expected rows at {path}, got none in {len(files)} files")
    return Log(table, store, tuple(files))


def _read_file(store: Store, info: ObjectInfo) -> pa.Table:
    source = store.describe(info.key)
    with open_listed(store, info) as file:
        _, schema = read_footer(file, source)
        check_schema(schema, source)
        with parquet_errors(source):
            names = [name for name in INTERACTIONS.names if name in schema.names]
            table = pq.ParquetFile(file).read(columns=names)
    table = conform(table)
    check_rows(table, source)
    return table


def check_schema(schema: pa.Schema, source: str) -> None:
    """Raises DataError naming `source` and the column that is missing or has a type that does not convert."""
    missing = [name for name in REQUIRED if name not in schema.names]
    if missing:
        raise DataError(f"{source}: expected columns {', '.join(REQUIRED)}; {', '.join(missing)} not found")
    for field in INTERACTIONS:
        if field.name not in schema.names:
            continue
        actual = schema.field(field.name).type
        if not converts(actual, field.type) and not (field.name == "timestamp" and pa.types.is_timestamp(actual)):
            raise DataError(f"{source}: expected column {field.name} as {field.type}, got {actual}")


def conform(table: pa.Table) -> pa.Table:
    """`table` with the columns of INTERACTIONS, cast; where one is missing, weight 1 and otherwise nulls."""
    columns = []
    for field in INTERACTIONS:
        if field.name in table.column_names:
            columns.append(_cast(table[field.name], field.type))
        elif field.name == "weight":
            columns.append(pa.repeat(pa.scalar(1.0, field.type), table.num_rows))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.table(columns, schema=INTERACTIONS)


def _cast(column: pa.ChunkedArray, expected: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):  # without a time zone it counts as UTC
        return pc.divide(column.cast(pa.int64()).cast(expected, safe=False), TICKS_PER_SECOND[column.type.unit])
    return column.cast(expected, safe=False)


def check_rows(table: pa.Table, source: str) -> None:
    """Raises DataError naming `source`, how many rows are invalid, and the number, from 0, of the first one."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: expected strings in UTF-8; {first_line(error)}") from error
    for name in ("query", "query_group"):
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(table[name]), ""), True)
        _refuse(blank, f"{source}: expected a text in column {name}, got null or blank")
    good = pc.and_(pc.is_finite(table["weight"]), pc.greater_equal(table["weight"], 0))
    _refuse(pc.invert(pc.fill_null(good, False)), f"{source}: expected a weight of 0 or more, got another")


def _refuse(bad: pa.ChunkedArray, message: str) -> None:
    first = pc.index(bad, True).as_py()
    if first >= 0:
        raise DataError(f"{message} in {pc.sum(bad).as_py()} rows, the first of them row {first}")


def require_interactions(path: str | None, s3: S3Settings | None, setting: str) -> Log:
    """`read_interactions`; raises ConfigError where no path is configured."""
    if path is None:
        raise ConfigError(f"{setting}: expected a Parquet file of search logs, got none")
    return read_interactions(path, s3, setting)


def check_split(log: pa.Table, held_back: pa.Table) -> None:
    """Raises DataError where a query group is in both: then the evaluation would measure what was memorised."""
    both = sorted(set(log["query_group"].to_pylist()) & set(held_back["query_group"].to_pylist()))
    if both:
        raise DataError(
            f"evaluation.interactions: expected other query groups than training.interactions, got {len(both)} of the "
            f"same, such as {both[0]!r}"
        )
