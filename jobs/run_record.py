"""What one run did: the record that the console shows."""

from collections.abc import Mapping
from dataclasses import dataclass

from indexing.release.report import BuildReport
from jobs.nightly import Outcome


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    name: str
    seconds: float | None
    """None where an earlier run had done the stage."""
    num_rows: int
    reused: str = ""
    peak_memory_bytes: int = 0
    """Of the largest worker; 0 where none was measured."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    stages: tuple[StageRecord, ...]
    quarantined: dict[str, int]
    """Reason → number of rows."""
    quarantine_key: str
    """Where those rows are, in the workspace."""
    report: BuildReport | None
    report_key: str | None
    release: int | None
    """The current release after the run; None where the run ended before publishing."""
    is_new: bool
    uploaded_bytes: int

    @property
    def num_quarantined(self) -> int:
        return sum(self.quarantined.values())


def make_record(outcome: Outcome, seconds: Mapping[str, float]) -> RunRecord:
    """`seconds` of the stages that have run."""
    validated, published = outcome.validated, outcome.published
    return RunRecord(
        stages=tuple(stage_records(outcome, seconds)),
        quarantined=outcome.prepared.quarantined,
        quarantine_key=outcome.prepared.quarantine_key,
        report=validated.report if validated else None,
        report_key=f"{validated.path}/done.json" if validated else None,
        release=published.release.number if published else None,
        is_new=published.is_new if published else False,
        uploaded_bytes=published.uploads.uploaded_bytes if published else 0,
    )


def stage_records(outcome: Outcome, seconds: Mapping[str, float]) -> list[StageRecord]:
    prepared, encoded, built = outcome.prepared, outcome.encoded, outcome.built

    def stage(name: str, num_rows: int, peak_memory_bytes: int = 0, reused: str = "") -> StageRecord:
        return StageRecord(
            name=name,
            seconds=seconds.get(name),
            num_rows=num_rows,
            reused=reused,
            peak_memory_bytes=peak_memory_bytes,
        )

    num_encoded = encoded.num_encoded if "encode" in seconds else 0
    reused = f"{prepared.total_items - num_encoded:,} vectors"
    found = [
        stage("prepare", prepared.num_rows, prepared.peak_memory_bytes),
        stage("encode", num_encoded, encoded.peak_memory_bytes, reused),
    ]
    if built:
        num_indexed = built.num_indexed if "build" in seconds else 0
        num_reused = sum(not shard.num_indexed or not num_indexed for shard in built.shards)
        num_changed = sum(bool(shard.entry.deltas or shard.entry.tombstones) for shard in built.shards)
        reused = f"{num_reused} of {len(built.shards)} graphs" + (f", {num_changed} with deltas" if num_changed else "")
        found.append(stage("build", num_indexed, built.peak_memory_bytes, reused))
    if outcome.validated:
        found.append(stage("validate", prepared.total_items, outcome.validated.peak_memory_bytes))
    if outcome.published:
        reused = f"{outcome.published.uploads.reused_bytes / 1e6:,.1f} MB"
        found.append(stage("publish", prepared.total_items, reused=reused))
    return found
