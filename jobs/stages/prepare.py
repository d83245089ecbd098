"""Stage 1: rows → checked, fingerprinted rows in buckets, by one shuffle of Ray Data.

Map tasks read the parts of the catalogue, and the ids that the base release has. A bucket's task gets all rows of one
range of ids from both: there it finds repeated ids, and which rows have no vector yet. Bad rows are listed in
`quarantine.csv`. No process holds more than one batch of a part, or one bucket.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from cluster.fanout import peak_memory_bytes
from cluster.session import ClusterUnavailable
from cluster.shuffle import BUCKET, shuffle
from indexing.catalogue.contract import FINGERPRINT_TYPE
from indexing.errors import DamagedError, DataError
from indexing.id_keys import id_keys
from indexing.release.codec import to_plain
from indexing.release.shard import read_rows
from indexing.store import Store
from indexing.store.cache import downloads
from jobs.inputs.catalogue import Part
from jobs.inputs.inputs import BaseShard, Inputs
from jobs.inputs.rows import RowRules, add_keys, check_part
from jobs.run import Run
from jobs.stages.quarantine import DUPLICATE, write_bad_rows, write_duplicates, write_quarantine
from jobs.workspace.artifact import Artifact
from jobs.workspace.buckets import DISPLAY, IDS, IDS_COLUMNS, NEW, VECTORS, buckets_of, num_buckets, write_bucket_file
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.records import Prepared
from jobs.workspace.take import take_rows
from jobs.workspace.vectors import VECTOR, row_keys, widened

logger = logging.getLogger(__name__)
FORMAT = 4
SOURCE = ["source_part", "source_row"]


@dataclass(frozen=True)
class Preparation:
    """What the tasks need; plain data, so that Ray can ship it."""

    parts: Sequence[Part]
    rules: RowRules
    encoder_fingerprint: str | None
    store: Store
    """Where the base release is."""
    workspace: Store
    path: str
    num_buckets: int

    @property
    def payload(self) -> str:
        return "text" if self.rules.dim is None else VECTOR


@dataclass(frozen=True)
class BucketCounts:
    """What became of the rows of a bucket."""

    number: int
    num_items: Counter[str]
    """By collection."""
    num_new: int
    """Rows whose vectors the base does not have."""
    num_duplicates: int
    examples: list[str]
    """Of ids that came again."""
    peak_memory_bytes: int


def prepare(run: Run, inputs: Inputs) -> Prepared:
    """Runs the stage, or skips it when its artifact is complete. Raises DataError past `catalogue.max_quarantined`."""
    artifact = prepared_artifact(run.workspace, inputs)
    if done := artifact.read():
        check_quarantine(run, done)  # the limit may have changed since
        return done
    source = inputs.source
    task = Preparation(
        parts=source.parts,
        rules=inputs.rules,
        encoder_fingerprint=inputs.encoder_fingerprint,
        store=run.store,
        workspace=run.workspace,
        path=artifact.path,
        num_buckets=num_buckets(source.num_rows),
    )
    sources = [*source.parts, *inputs.base_shards]
    read, write = partial(read_source, task), partial(write_bucket, task)
    buckets: list[BucketCounts] = []
    with run.stage("prepare", source.num_rows) as bar:
        for counts in shuffle(sources, read, write, task.num_buckets, what="prepare"):
            buckets.append(counts)
            bar.advance(counts.num_items.total() + counts.num_duplicates)
        reasons = write_quarantine(run.workspace, artifact.path)
    prepared = summarise(task, inputs, buckets, reasons)
    check_quarantine(run, prepared)
    artifact.write(prepared)
    return prepared


def prepared_artifact(workspace: Store, inputs: Inputs) -> Artifact[Prepared]:
    rules = inputs.rules
    name = fingerprint(
        FORMAT,
        inputs.source.fingerprint,
        rules.collections,
        rules.text or {},
        inputs.encoder_fingerprint,
        [(str(base), to_plain(base.shard)) for base in inputs.base_shards],
    )
    return Artifact(workspace, f"items/{name}", Prepared)


def shuffled_schema(rules: RowRules) -> pa.Schema:
    """Of the rows of the catalogue and of the base alike; the latter have ids and fingerprints alone."""
    fields = {field.name: field.type for field in rules.schema}
    fields |= {"text": pa.string()} if rules.dim is None else {VECTOR: pa.list_(pa.float32(), rules.dim)}
    fields |= {"collection": pa.string(), "id_key": pa.uint64(), "fingerprint": FINGERPRINT_TYPE}
    return pa.schema([*fields.items(), *((name, pa.int64()) for name in SOURCE), (BUCKET, pa.int32())])


def read_source(task: Preparation, source: Part | BaseShard) -> Iterator[pa.Table]:
    """The rows of a part, or those of a shard of the base, which have no source."""
    schema = shuffled_schema(task.rules)
    tables = read_base(task, source) if isinstance(source, BaseShard) else read_part(task, source)
    for table in tables:
        columns = {name: table[name] for name in table.column_names}
        columns[BUCKET] = buckets_of(table["id_key"].to_numpy(), task.num_buckets)
        missing = {field.name: pa.nulls(table.num_rows, field.type) for field in schema if field.name not in columns}
        yield pa.table({**columns, **missing}).select(schema.names).cast(schema)


def read_part(task: Preparation, part: Part) -> Iterator[pa.Table]:
    """Checks a part batch by batch; writes its bad rows once all are known."""
    bad = []
    for good, bad_of_batch in check_part(part, task.rules):
        good = add_keys(good, task.rules, task.encoder_fingerprint)
        yield widened(good) if task.rules.dim is not None else good
        bad.append(bad_of_batch)
    if bad:
        write_bad_rows(task.workspace, task.path, part.number, pa.concat_tables(bad))


def read_base(task: Preparation, base: BaseShard) -> Iterator[pa.Table]:
    """Ids and fingerprints of all rows whose vectors the shard has, those of tombstones included."""
    with downloads(task.store) as fetch:
        try:
            rows = read_rows(fetch, base.shard, str(base))
        except DamagedError as error:
            logger.warning("prepare: the current release is damaged, so vectors are made again: %s", error)
            return
    rows = rows.append_column("id_key", pa.array(id_keys(rows["item_id"].to_pylist())))
    yield rows.append_column("collection", pa.repeat(base.collection, rows.num_rows))


def write_bucket(task: Preparation, rows: pa.Table) -> BucketCounts:
    """Writes the files of a bucket, and its duplicates. Of rows with one id the first counts, by part and row."""
    number = rows[BUCKET][0].as_py()
    is_base = pc.is_null(rows["source_part"])
    base, rows = rows.filter(is_base), rows.filter(pc.invert(is_base))
    rows, repeated = split_repeated(rows)
    if repeated.num_rows:
        write_duplicates(task.workspace, task.path, number, task.parts, repeated)
    rows = take_rows(rows, pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in IDS_COLUMNS[:3]]))
    is_new = pc.invert(pc.is_in(vector_keys(rows), value_set=vector_keys(base)))
    new = rows.filter(is_new).select([*IDS_COLUMNS, task.payload])
    if rows.num_rows:
        display = rows.drop_columns([*IDS_COLUMNS, task.payload, *SOURCE, BUCKET])
        write_bucket_file(task.workspace, task.path, IDS, number, rows.select(IDS_COLUMNS))
        write_bucket_file(task.workspace, task.path, DISPLAY, number, display)
    if new.num_rows:
        write_bucket_file(task.workspace, task.path, NEW if task.rules.dim is None else VECTORS, number, new)
    return BucketCounts(
        number=number,
        num_items=Counter(rows["collection"].to_pylist()),
        num_new=new.num_rows,
        num_duplicates=repeated.num_rows,
        examples=repeated["item_id"].to_pylist()[:3],
        peak_memory_bytes=peak_memory_bytes(),
    )


def split_repeated(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(rows of different ids, those whose id an earlier row has)."""
    order = [(name, "ascending") for name in ("id_key", "item_id", *SOURCE)]
    rows = take_rows(rows, pc.sort_indices(rows, sort_keys=order))
    ids = rows["item_id"].combine_chunks()
    is_repeated = pa.concat_arrays([pa.array([False] * min(1, len(ids)), pa.bool_()), pc.equal(ids[1:], ids[:-1])])
    return rows.filter(pc.invert(is_repeated)), rows.filter(is_repeated)


def vector_keys(rows: pa.Table) -> pa.Array:
    """binary (num_rows,): `row_keys` and the collection, whose shards have the vector."""
    names = rows["collection"].cast(pa.binary()).combine_chunks()
    return pc.binary_join_element_wise(names, row_keys(rows), b"\0")


def summarise(
    task: Preparation, inputs: Inputs, buckets: Sequence[BucketCounts], reasons: Mapping[str, int]
) -> Prepared:
    """Raises ClusterUnavailable where rows were lost on the way."""
    reasons = dict(reasons)
    num_items: Counter[str] = sum((bucket.num_items for bucket in buckets), Counter())
    if num_duplicates := sum(bucket.num_duplicates for bucket in buckets):
        examples = sorted(example for bucket in buckets for example in bucket.examples)[:3]
        reasons[f"{DUPLICATE}, such as {', '.join(examples)}"] = num_duplicates
    num_found = num_items.total() + sum(reasons.values())
    if num_found != inputs.source.num_rows:
        raise ClusterUnavailable(f"prepare: expected {inputs.source.num_rows} rows, got {num_found}; run again")
    return Prepared(
        path=task.path,
        catalogue_fingerprint=inputs.source.fingerprint,
        num_buckets=task.num_buckets,
        buckets=tuple(sorted(bucket.number for bucket in buckets if bucket.num_items)),
        new_buckets=tuple(sorted(bucket.number for bucket in buckets if bucket.num_new)),
        num_new=sum(bucket.num_new for bucket in buckets),
        num_rows=inputs.source.num_rows,
        num_items=dict(sorted(num_items.items())),
        quarantined=dict(sorted(reasons.items())),
        peak_memory_bytes=max((bucket.peak_memory_bytes for bucket in buckets), default=0),
    )


def check_quarantine(run: Run, prepared: Prepared) -> None:
    """Raises DataError when too many rows were bad, or a collection got no items."""
    catalogue, num_bad = run.config.catalogue, prepared.num_quarantined
    if num_bad > (allowed := catalogue.max_bad_rows(prepared.num_rows)):
        reason, count = max(prepared.quarantined.items(), key=lambda item: item[1])
        raise DataError(
            f"expected at most {allowed} bad rows (catalogue.max_quarantined: {catalogue.max_quarantined}), got "
            f"{num_bad} of {prepared.num_rows}; {count} of them: {reason}; all are in "
            f"{run.workspace.describe(prepared.quarantine_key)}"
        )
    for name, group in catalogue.collections.items():
        if not prepared.num_items.get(name):
            kinds = ", ".join(group.item_types)
            raise DataError(
                f"expected items of type {kinds} for the collection {name}, got no good row; see catalogue.collections"
            )
