"""Stage 1: rows → checked, fingerprinted rows, sorted for the stages after it.

Each part becomes runs in the workspace: `items-N` sorted by id key, which `build` reads by range, and `texts-N` sorted
by fingerprint, which `encode` reads by range (or `vectors-N`, sorted by id key, where vectors come precomputed). Bad
rows are listed in `quarantine.csv`. No process ever holds more than one batch of a part, or one range of ids.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.errors import DataError
from indexing.key_ranges import KeyRange, key_range
from indexing.store import Store
from jobs.inputs.catalogue import Part, Source
from jobs.inputs.inputs import Inputs
from jobs.inputs.rows import RowRules, add_keys, check_part
from jobs.run import Run
from jobs.stages.quarantine import DUPLICATE, write_bad_rows, write_quarantine
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.records import Prepared
from jobs.workspace.runs import read_parts, run_key, run_writer, write_run
from jobs.workspace.vectors import VECTOR

FORMAT = 3
ROWS_PER_DUPLICATE_CHECK = 1_000_000
TEXT_COLUMNS = ["fingerprint_key", "fingerprint", "item_id", "id_key", "text"]
VECTOR_COLUMNS = ["id_key", "item_id", "fingerprint", VECTOR]
ITEM_ORDER = ["collection", "id_key", "item_id", "source_part", "source_row"]


@dataclass(frozen=True)
class PartCounts:
    """What preparing a part found."""

    number: int
    num_rows: int
    reasons: Counter[str]
    """Reason → number of quarantined rows."""
    peak_memory_bytes: int


@dataclass(frozen=True)
class RangeCheck:
    """The duplicates of one range of ids."""

    number: int
    num_duplicates: int
    examples: list[str]
    num_items: Counter[str]
    """By collection, duplicates left out."""


def prepare(run: Run, inputs: Inputs) -> Prepared:
    """Runs the stage, or skips it when its artifact is complete. Raises DataError past `catalogue.max_quarantined`."""
    artifact = prepared_artifact(run.workspace, inputs)
    if done := artifact.read():
        check_quarantine(run, done)  # the limit may have changed since
        return done
    source, path = inputs.source, artifact.path
    with run.stage("prepare", source.num_rows) as bar:
        parts: list[PartCounts] = []
        for _, counts in fan_out(
            lambda part: prepare_part.remote(part, inputs.rules, inputs.encoder_fingerprint, run.workspace, path),
            source.parts,
            what="prepare",
        ):
            parts.append(counts)
            bar.advance(counts.num_rows)
        checks = find_all_duplicates(run.workspace, path, source, len(parts))
    prepared = summarise(path, source, parts, checks)
    if prepared.quarantined:
        with_bad = [counts.number for counts in parts if counts.reasons]
        ranges = prepared.duplicate_ranges
        write_quarantine(run.workspace, path, prepared.quarantine_key, source.parts, with_bad, ranges)
    check_quarantine(run, prepared)
    artifact.write(prepared)
    return prepared


def prepared_artifact(workspace: Store, inputs: Inputs) -> Artifact[Prepared]:
    rules = inputs.rules
    name = fingerprint(
        FORMAT, inputs.source.fingerprint, rules.collections, rules.text or {}, inputs.encoder_fingerprint
    )
    return Artifact(workspace, f"items/{name}", Prepared)


@ray.remote
def prepare_part(
    part: Part, rules: RowRules, encoder_fingerprint: str | None, workspace: Store, path: str
) -> PartCounts:
    """Checks and fingerprints one part, batch by batch; writes its runs and its quarantine."""
    kind, columns = ("vectors", VECTOR_COLUMNS) if rules.text is None else ("texts", TEXT_COLUMNS)
    num_good, set_aside = 0, list[pa.Table]()
    with (
        run_writer(workspace, run_key(path, "items", part.number), sort_by=ITEM_ORDER) as write_items,
        run_writer(workspace, run_key(path, kind, part.number), sort_by=columns[:3]) as write_payload,
    ):
        for good, bad in check_part(part, rules):
            good = add_keys(good, rules, encoder_fingerprint)
            write_items(good.drop_columns([columns[-1], "fingerprint_key"]))
            write_payload(good.select(columns))
            num_good += good.num_rows
            set_aside.append(bad)
    bad = pa.concat_tables(set_aside)
    if bad.num_rows:
        write_bad_rows(workspace, path, part.number, bad)
    reasons = Counter(bad["reason"].to_pylist())
    return PartCounts(part.number, num_good + bad.num_rows, reasons, peak_memory_bytes())


def find_all_duplicates(workspace: Store, path: str, source: Source, num_parts: int) -> list[RangeCheck]:
    num_ranges = -(-source.num_rows // ROWS_PER_DUPLICATE_CHECK)
    found = fan_out(
        lambda number: find_duplicates.remote(workspace, path, num_parts, number, key_range(number, num_ranges)),
        range(num_ranges),
        what="duplicate check",
    )
    return [check for _, check in found]


@ray.remote
def find_duplicates(workspace: Store, path: str, num_parts: int, number: int, keys: KeyRange) -> RangeCheck:
    """Rows of one id range whose id an earlier row has. The first one, by part and row, is not a duplicate."""
    columns = ["id_key", "item_id", "collection", "source_part", "source_row"]
    rows = read_parts(workspace, path, "items", num_parts, "id_key", keys, columns=columns)
    order = [(name, "ascending") for name in ("id_key", "item_id", "source_part", "source_row")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=order))
    ids = rows["item_id"].combine_chunks()
    is_repeated = pa.concat_arrays([pa.nulls(min(1, len(ids)), pa.bool_()), pc.equal(ids[1:], ids[:-1])]).fill_null(
        False
    )
    repeated = rows.filter(is_repeated)
    if repeated.num_rows:
        write_run(workspace, run_key(path, "duplicates", number), repeated, sort_by=columns)
    return RangeCheck(
        number=number,
        num_duplicates=repeated.num_rows,
        examples=repeated["item_id"].to_pylist()[:3],
        num_items=Counter(rows.filter(pc.invert(is_repeated))["collection"].to_pylist()),
    )


def summarise(path: str, source: Source, parts: Sequence[PartCounts], checks: Sequence[RangeCheck]) -> Prepared:
    reasons: Counter[str] = sum((counts.reasons for counts in parts), Counter())
    if num_duplicates := sum(check.num_duplicates for check in checks):
        examples = sorted(example for check in checks for example in check.examples)[:3]
        reasons[f"{DUPLICATE}, such as {', '.join(examples)}"] = num_duplicates
    return Prepared(
        path=path,
        catalogue_fingerprint=source.fingerprint,
        num_parts=len(parts),
        duplicate_ranges=tuple(sorted(check.number for check in checks if check.num_duplicates)),
        num_rows=source.num_rows,
        num_items=dict(sorted(sum((check.num_items for check in checks), Counter()).items())),
        quarantined=dict(sorted(reasons.items())),
        peak_memory_bytes=max(counts.peak_memory_bytes for counts in parts),
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
