"""CSV and JSON lines as tables, a block at a time: memory follows the block, not the file.

Every value of a CSV is read as text, unchanged, so that a column has the same type every night; an empty one is null. A
line that is not a valid row becomes one without values and with a reason. JSON is read by Python's own parser:
pyarrow's (26.0) crashes the process on a line `null` and on deep nesting, and reads texts that look like dates as such.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as csv

from indexing.errors import DataError, first_line

BLOCK_BYTES = 4 << 20
"""What is parsed of a CSV file at once, and so its longest row. The reader is up to 32 blocks ahead. A line of JSON may
be as long."""
TOO_LONG = f"the line is longer than {BLOCK_BYTES >> 20} MiB"
TABLE_BYTES = 16 << 20
"""What a table has at least, in memory, unless it is the last one of its file; of JSON lines, bytes of the file."""
ROW, REASON, LINE = "nightcrate:row", "nightcrate:reason", "nightcrate:line"
"""Columns in addition to the file's: the row's number, from 0 with the header; why it is invalid, or null; its text."""
DELIMITERS = ",;\t"
END = "\x1enightcrate\x1e"
"""A row of these, added after the last one, shows whether a quote was left open."""
MAX_LINE = 1_000
"""Characters that are kept of an invalid line."""


def read_tables(file: BinaryIO, name: str, source: str) -> Iterator[pa.Table]:
    """The rows of a file that is CSV or JSON lines by its `name`. Raises DataError, naming `source`, if it is not."""
    with text_errors(source):
        if name.lower().endswith(".gz"):
            file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        is_csv = name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
        yield from joined(read_csv(file, source)) if is_csv else read_json_lines(file, source)


def joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of at least TABLE_BYTES; all have one schema."""
    found: list[pa.Table] = []
    for table in tables:
        found.append(table)
        if sum(one.nbytes for one in found) >= TABLE_BYTES:
            yield pa.concat_tables(found)
            found = []
    if found:
        yield pa.concat_tables(found)


@contextmanager
def text_errors(source: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source}: expected a complete gzip file; {first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: expected a header in UTF-8, got the byte {error.object[error.start]:#x}") from error
    except OSError as error:
        raise DataError(f"{source}: {first_line(error)}") from error


def read_csv(file: BinaryIO, source: str) -> Iterator[pa.Table]:
    """Fields are separated by the most frequent of DELIMITERS in the first line; quotes are those of RFC 4180."""
    delimiter = find_delimiter(file)
    names = _open_csv(file, delimiter, [], source).schema.names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{source}: expected each column once, got {repeated[0]!r} twice")
    file.seek(0)
    skipped: list[csv.InvalidRow] = []
    with_end: Any = WithEnd(file, f"\n{delimiter.join([END] * len(names))}\n".encode())
    reader = _open_csv(with_end, delimiter, skipped, source, names)
    row, is_whole = 1, False
    while (batch := _next_batch(reader, row, source)) is not None:
        if is_whole := batch.num_rows > 0 and batch.column(0)[-1].as_buffer() == END.encode():
            batch = batch.slice(0, batch.num_rows - 1)
        table, row = number_rows(batch, skipped, row)
        if table.num_rows:
            yield table
    if not is_whole:
        raise DataError(f"{source}: expected each quote to be closed, got one that is open to the end of the file")


def find_delimiter(file: BinaryIO) -> str:
    line = file.readline(BLOCK_BYTES).decode("latin-1")
    file.seek(0)
    return max(DELIMITERS, key=line.count)


def _open_csv(
    file: Any, delimiter: str, skipped: list[csv.InvalidRow], source: str, names: Sequence[str] = ()
) -> csv.CSVStreamingReader:
    def skip(row: csv.InvalidRow) -> str:
        skipped.append(row)
        return "skip"

    try:
        return csv.open_csv(
            file,
            csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),  # with threads rows have no numbers
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
            csv.ConvertOptions(
                check_utf8=False,  # rows are checked later, one by one
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _csv_error(error, 0, source) from error


def _next_batch(reader: csv.CSVStreamingReader, row: int, source: str) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        raise _csv_error(error, row, source) from error


def _csv_error(error: pa.ArrowInvalid, row: int, source: str) -> DataError:
    if "straddl" in str(error):
        return DataError(
            f"{source}: expected rows of at most {BLOCK_BYTES >> 20} MiB; a longer one, or a quote that is not closed, "
            f"follows row {row}"
        )
    return DataError(f"{source}: expected a CSV file with a header; {first_line(error)}")


def number_rows(batch: pa.RecordBatch, skipped: list[csv.InvalidRow], row: int) -> tuple[pa.Table, int]:
    """(the rows of `batch`, which begin at `row` of the file, with those between them that were skipped; the next row).

    The reader is ahead: rows that it skipped after this batch stay in `skipped`.
    """
    numbers: list[int] = []
    bad: list[csv.InvalidRow] = []
    while skipped and skipped[0].number - 1 - row <= batch.num_rows - len(numbers):
        bad.append(skipped.pop(0))
        numbers += range(row, bad[-1].number - 1)
        row = bad[-1].number
    last = row + batch.num_rows - len(numbers)
    numbers += range(row, last)
    good = pa.Table.from_batches([batch]).append_column(ROW, pa.array(numbers, pa.int64()))
    reasons = [f"expected {one.expected_columns} fields, got {one.actual_columns}" for one in bad]
    return with_bad(good, [one.number - 1 for one in bad], reasons, [one.text for one in bad]), last


def with_bad(good: pa.Table, rows: list[int], reasons: list[str], lines: list[str]) -> pa.Table:
    """`good` with REASON and LINE, followed by the invalid lines."""
    columns = {
        ROW: pa.array(rows, pa.int64()),
        REASON: pa.array(reasons, pa.string()),
        LINE: pa.array([line[:MAX_LINE] for line in lines], pa.string()),
    }
    return pa.concat_tables([good, pa.table(columns)], promote_options="default")


class WithEnd:
    """A file for pyarrow, followed by some more bytes."""

    closed = False

    def __init__(self, file: BinaryIO, end: bytes) -> None:
        self.file, self.end = file, end

    def read(self, num_bytes: int = -1) -> bytes:
        data = self.file.read(num_bytes)
        if not data:
            data, self.end = self.end, b""
        return data

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        pass


def read_json_lines(file: BinaryIO, source: str) -> Iterator[pa.Table]:
    """One object per line; blank lines are skipped."""
    first = 0
    while lines := next_lines(file):
        yield objects_table(lines, first, source)
        first += len(lines)


def next_lines(file: BinaryIO) -> list[bytes]:
    """Lines of some TABLE_BYTES; of one that is longer than BLOCK_BYTES one byte more than these."""
    lines: list[bytes] = []
    size_bytes = 0
    while size_bytes < TABLE_BYTES and (line := file.readline(BLOCK_BYTES + 1)):
        lines.append(line)
        size_bytes += len(line)
        while len(line) > BLOCK_BYTES and not line.endswith(b"\n"):
            line = file.readline(BLOCK_BYTES + 1)
    return lines


def objects_table(lines: list[bytes], first: int, source: str) -> pa.Table:
    """`first`: the number of the first line in the file, from 0."""
    objects: dict[int, dict[str, Any]] = {}
    bad: dict[int, bytes] = {}
    for row, line in enumerate(lines, first):
        try:
            objects[row] = parse_object(line if row else line.removeprefix(b"\xef\xbb\xbf"))
        except ValueError:
            if line.strip():
                bad[row] = line
    names = dict.fromkeys(name for value in objects.values() for name in value)
    columns = {
        name: column_of([value.get(name) for value in objects.values()], list(objects), name, source) for name in names
    }
    good = pa.table({**columns, ROW: pa.array(objects, pa.int64())})
    texts = [line[: 4 * MAX_LINE].decode("utf-8", "replace") for line in bad.values()]
    reasons = [TOO_LONG if len(line) > BLOCK_BYTES else "expected a JSON object in UTF-8" for line in bad.values()]
    return with_bad(good, list(bad), reasons, texts)


def parse_object(line: bytes) -> dict[str, Any]:
    """Empty objects inside it, which Parquet cannot hold, become null. Raises ValueError for anything but an object."""
    if len(line) > BLOCK_BYTES:
        raise ValueError(TOO_LONG)
    try:
        value = json.loads(line, object_hook=lambda found: found or None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    if b"\\u" in line:  # half a surrogate pair is valid JSON, but not UTF-8
        json.dumps(value, ensure_ascii=False).encode()
    return value


def column_of(values: list[Any], rows: list[int], name: str, source: str) -> pa.Array:
    """The values as an Arrow array, made alike where they have no type in common.

    Raises DataError naming the line in which they change their type.
    """
    for change in (in_lists, as_texts):
        if _why_no_column(values) is not None:
            values = change(values)
    error = _why_no_column(values)
    if error is None:
        return pa.array(values)
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _why_no_column(values[:middle]) is None else (good, middle)
    raise DataError(f"{source}: line {rows[bad - 1] + 1}: {name}: {first_line(error)[:200]}") from error


def in_lists(values: list[Any]) -> list[Any]:
    """Where a value is a list, each other one as a list of it."""
    if not any(isinstance(value, list) for value in values):
        return values
    return [value if value is None or isinstance(value, list) else [value] for value in values]


def as_texts(values: list[Any]) -> list[Any]:
    """Numbers and booleans as texts, in lists too."""
    texts: list[Any] = []
    for value in values:
        is_number = isinstance(value, int | float)
        texts.append(as_texts(value) if isinstance(value, list) else json.dumps(value) if is_number else value)
    return texts


def _why_no_column(values: list[Any]) -> Exception | None:
    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        return error
    return None
