"""Stage 1: rows → checked, fingerprinted rows, sorted for the stages behind.

Each part becomes runs in the workspace: `items-N` sorted by id key, which `build` reads by range, and `texts-N` sorted
by fingerprint, which `encode` reads by range (or `vectors-N`, sorted by id key, where vectors come ready-made). Bad
rows go to `quarantine/`. No process ever sees more than one part, or one range of ids.
"""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.errors import DataError
from indexing.key_ranges import KeyRange, key_range
from indexing.store import Store
from jobs.config.schema import Config
from jobs.inputs.catalogue import Part, Source, scan_source
from jobs.inputs.rows import PartSettings, check_part, part_settings
from jobs.progress import Progress
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.runs import parquet_bytes, read_parts, write_run
from jobs.workspace.vectors import VECTOR

FORMAT = 1
ROWS_PER_DUPLICATE_CHECK = 1_000_000
ITEM_ORDER = ["collection", "id_key", "item_id", "source_part", "source_row"]


def prepare(config: Config, workspace: Store, encoder_fingerprint: str | None, progress: Progress) -> Artifact:
    """Runs the stage, or skips it when its artifact is complete. Raises DataError past `catalogue.max_quarantined`."""
    source = scan_source(config)
    settings = part_settings(config, source, encoder_fingerprint)
    artifact = prepared_artifact(config, workspace, source, encoder_fingerprint)
    if done := artifact.read_marker():
        check_quarantine(done, config, artifact)  # what is allowed may have changed since
        return artifact
    results, checks = [], []
    with progress.stage("prepare", source.num_rows) as bar:
        for _, result in fan_out(
            lambda part: prepare_part.remote(part, settings, artifact), source.parts, what="prepare"
        ):
            results.append(result)
            bar.advance(result["num_rows"])
        num_checks = -(-source.num_rows // ROWS_PER_DUPLICATE_CHECK)
        for _, check in fan_out(
            lambda number: find_duplicates.remote(artifact, len(results), number, key_range(number, num_checks)),
            range(num_checks),
            what="duplicate check",
        ):
            checks.append(check)
    marker = summarise(source, results, checks)
    check_quarantine(marker, config, artifact)
    artifact.write_marker(marker)
    return artifact


def prepared_artifact(config: Config, workspace: Store, source: Source, encoder_fingerprint: str | None) -> Artifact:
    settings = part_settings(config, source, encoder_fingerprint)
    name = fingerprint(FORMAT, source.fingerprint, settings.collections, settings.text, encoder_fingerprint)
    return Artifact(workspace, f"items/{name}")


@ray.remote
def prepare_part(part: Part, settings: PartSettings, artifact: Artifact) -> dict[str, Any]:
    """Checks and fingerprints one part; writes its runs and its quarantine."""
    good, bad = check_part(part, settings)
    name = f"{part.number:05d}.parquet"
    if bad.num_rows:
        artifact.store.put(artifact.key(f"quarantine/{name}"), parquet_bytes(bad))
    payload = "text" if settings.encoder_fingerprint else VECTOR
    items = good.drop_columns([payload, "fingerprint_key"])
    write_run(artifact.store, artifact.key(f"items-{name}"), items, sort_by=ITEM_ORDER)
    if payload == "text":
        texts = good.select(["fingerprint_key", "fingerprint", "item_id", "id_key", "text"])
        write_run(artifact.store, artifact.key(f"texts-{name}"), texts, sort_by=texts.column_names[:3])
    else:
        vectors = good.select(["id_key", "item_id", "fingerprint", VECTOR])
        write_run(artifact.store, artifact.key(f"vectors-{name}"), vectors, sort_by=vectors.column_names[:3])
    return {
        "num_rows": good.num_rows + bad.num_rows,
        "reasons": Counter(bad["reason"].to_pylist()),
        "peak_memory_bytes": peak_memory_bytes(),
    }


@ray.remote
def find_duplicates(artifact: Artifact, num_parts: int, number: int, keys: KeyRange) -> dict[str, Any]:
    """Rows of one id range whose id another row has already, which stays: the first by part and row."""
    columns = ["id_key", "item_id", "collection", "source_part", "source_row"]
    rows = read_parts(artifact, "items", num_parts, "id_key", keys, columns=columns)
    order = [(name, "ascending") for name in ("id_key", "item_id", "source_part", "source_row")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=order))
    ids = rows["item_id"].combine_chunks()
    is_repeated = pa.concat_arrays([pa.nulls(min(1, len(ids)), pa.bool_()), pc.equal(ids[1:], ids[:-1])]).fill_null(
        False
    )
    repeated = rows.filter(is_repeated)
    if repeated.num_rows:
        write_run(artifact.store, artifact.key(f"duplicates-{number:05d}.parquet"), repeated, sort_by=columns)
    return {
        "number": number,
        "num_duplicates": repeated.num_rows,
        "examples": repeated["item_id"].to_pylist()[:3],
        "num_items": Counter(rows.filter(pc.invert(is_repeated))["collection"].to_pylist()),
    }


def summarise(source: Source, results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> dict[str, Any]:
    reasons: Counter[str] = sum((result["reasons"] for result in results), Counter())
    if num_duplicates := sum(check["num_duplicates"] for check in checks):
        examples = sorted(example for check in checks for example in check["examples"])[:3]
        reasons[f"item_id stands in an earlier row already, such as {', '.join(examples)}"] = num_duplicates
    return {
        "catalogue_fingerprint": source.fingerprint,
        "num_parts": len(results),
        "duplicate_runs": sorted(check["number"] for check in checks if check["num_duplicates"]),
        "num_rows": source.num_rows,
        "num_items": dict(sorted(sum((check["num_items"] for check in checks), Counter()).items())),
        "quarantined": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
    }


def check_quarantine(marker: dict[str, Any], config: Config, artifact: Artifact) -> None:
    """Raises DataError when too many rows were bad, or a collection got no items."""
    num_bad, num_rows = sum(marker["quarantined"].values()), marker["num_rows"]
    if num_bad > config.catalogue.max_quarantined * num_rows:
        reason, count = next(iter(marker["quarantined"].items()))
        where = artifact.store.describe(artifact.key("quarantine"))
        raise DataError(
            f"expected at most {config.catalogue.max_quarantined:.2%} bad rows (catalogue.max_quarantined), got "
            f"{num_bad} of {num_rows}; {count} of them: {reason}; all are in {where}"
        )
    for name, group in config.catalogue.collections.items():
        if not marker["num_items"].get(name):
            kinds = ", ".join(group.item_types)
            raise DataError(
                f"expected items of type {kinds} for the collection {name}, got no good row; see catalogue.collections"
            )
