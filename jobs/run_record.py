"""What one run did: the record that the console shows, and that the workspace keeps for a while."""

import datetime
import importlib.metadata
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from indexing.errors import ConfigError, DamagedError, NightcrateError
from indexing.release.codec import from_plain, to_plain
from indexing.release.report import BuildReport
from indexing.store import Store
from jobs.nightly import Outcome
from jobs.run import Run

logger = logging.getLogger(__name__)
RECORDS_PREFIX = "runs/"
RECORD_KEY = re.compile(r"runs/\d{8}T\d{6}Z-\w+\.json", re.ASCII)
NUM_KEPT = 90
"""The newest records, which a workspace keeps: those of some three months."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    name: str
    seconds: float | None
    """None where an earlier run had done the stage."""
    num_rows: int | None
    """None in a run that failed."""
    reused: str = ""
    peak_memory_bytes: int = 0
    """Of the largest worker; 0 where none was measured."""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A run when it begins."""

    id: str
    command: str
    started_at: datetime.datetime


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    format_version: Literal[1] = 1
    id: str
    """Unique to the run."""
    command: str
    """nightly, or the requested stage."""
    name: str
    """From the configuration."""
    version: str
    """Of nightcrate."""
    process: str
    """Host and process id of the driver."""
    started_at: str
    """ISO 8601, UTC."""
    ended_at: str
    exit_code: int
    error: str | None
    """The error line of a run that failed; else None."""
    stages: tuple[StageRecord, ...]
    """Those that have ended."""
    work: tuple[str, ...]
    """The folders of its artifacts in the workspace; none in a run that failed."""
    quarantined: dict[str, int]
    """Reason → number of rows."""
    quarantine_key: str | None
    """Where those rows are, in the workspace."""
    report: BuildReport | None
    report_key: str | None
    store: str
    release: int | None
    """The current release after the run; None where the run ended before publishing."""
    is_new: bool
    uploaded_bytes: int

    @property
    def num_quarantined(self) -> int:
        return sum(self.quarantined.values())

    @property
    def key(self) -> str:
        """In the workspace; records sort by the time at which their runs began."""
        started = datetime.datetime.fromisoformat(self.started_at)
        return f"{RECORDS_PREFIX}{started:%Y%m%dT%H%M%SZ}-{self.id}.json"


def begin_record(command: str) -> RunStart:
    return RunStart(id=uuid.uuid4().hex[:12], command=command, started_at=datetime.datetime.now(datetime.UTC))


def make_record(
    run: Run, start: RunStart, outcome: Outcome | None, error: str | None = None, exit_code: int = 0
) -> RunRecord:
    """The record of a run that has just ended; a run without an outcome has failed, and less is known of it."""
    validated, published = (outcome.validated, outcome.published) if outcome else (None, None)
    return RunRecord(
        id=start.id,
        command=start.command,
        name=run.config.name,
        version=importlib.metadata.version("nightcrate"),
        process=f"{socket.gethostname()}, {os.getpid()}",
        started_at=start.started_at.isoformat(timespec="seconds"),
        ended_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        exit_code=exit_code,
        error=error,
        stages=tuple(stage_records(outcome, run.progress.seconds) if outcome else ended_stages(run.progress.seconds)),
        work=work_of(outcome) if outcome else (),
        quarantined=outcome.prepared.quarantined if outcome else {},
        quarantine_key=outcome.prepared.quarantine_key if outcome else None,
        report=validated.report if validated else None,
        report_key=f"{validated.path}/done.json" if validated else None,
        store=run.store.url,
        release=published.release.number if published else None,
        is_new=published.is_new if published else False,
        uploaded_bytes=published.uploads.uploaded_bytes if published else 0,
    )


def keep_record(workspace: Store, record: RunRecord) -> None:
    """Writes the record and deletes all but the newest `NUM_KEPT`. Raises nothing: the run has ended already."""
    try:
        workspace.put(record.key, record_bytes(record))
        for key in record_keys(workspace)[:-NUM_KEPT]:
            workspace.delete(key)
    except NightcrateError as error:
        # After a failure one line says what is wrong, and probably this is the same.
        level = logging.DEBUG if record.error else logging.WARNING
        logger.log(level, "the record of this run is not kept: %s", error)


def record_bytes(record: RunRecord) -> bytes:
    return json.dumps(to_plain(record), sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def work_of(outcome: Outcome) -> tuple[str, ...]:
    made = (outcome.prepared, outcome.built, outcome.validated)
    return (*outcome.converted, *(artifact.path for artifact in made if artifact))


def work_in_use(workspace: Store, min_age_s: float) -> set[str]:
    """Folders of the runs of the last `min_age_s`, and of the last run of each command for each catalogue and store.

    Raises ConfigError where no run has left a record: then nobody knows what is in use.
    """
    used: set[str] = set()
    last: dict[tuple[str, ...], tuple[str, ...]] = {}
    oldest = datetime.datetime.fromtimestamp(workspace.now() - min_age_s, datetime.UTC).isoformat(timespec="seconds")
    for key in record_keys(workspace):
        record = read_record(workspace, key)
        if record.work:
            last[record.name, record.store, record.command] = record.work
            used |= set(record.work) if record.started_at >= oldest else set()
    if not last:
        raise ConfigError(
            f"expected the record of a run that has ended well in {workspace.describe(RECORDS_PREFIX)}, got none: run "
            "nightly first, or name another workspace"
        )
    return used.union(*last.values())


def read_record(workspace: Store, key: str) -> RunRecord:
    """Raises DamagedError for what is no record."""
    try:
        return from_plain(RunRecord, json.loads(workspace.get(key)))
    except ValueError as error:
        raise DamagedError(f"{workspace.describe(key)} is not JSON: {error}; delete it") from error


def record_keys(workspace: Store) -> list[str]:
    """Oldest first."""
    return [info.key for info in workspace.list(RECORDS_PREFIX) if RECORD_KEY.fullmatch(info.key)]


def ended_stages(seconds: Mapping[str, float]) -> list[StageRecord]:
    return [StageRecord(name=name, seconds=spent, num_rows=None) for name, spent in seconds.items()]


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
