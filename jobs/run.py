"""One run: its configuration, stores and progress, each made once and passed to every stage."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.nodes import is_deleted_with_job
from indexing.errors import ConfigError
from indexing.store import S3Settings, Store, open_store
from indexing.store.local import LocalStore
from jobs.config.schema import Config
from jobs.progress import Bar, Progress


@dataclass(frozen=True)
class Run:
    config: Config
    store: Store
    """Where releases are published."""
    workspace: Store
    progress: Progress
    allowed: frozenset[str] | None = None
    """The stages that may run, all by default: a command for one stage requires that the others are done."""

    check: Callable[[], None] = lambda: None
    """Raises when this run may not go on: its lease on the store is lost. Called before each stage."""

    def stage(self, name: str, total: int, unit: str = "rows") -> AbstractContextManager[Bar]:
        """A stage of `total` units, shown while the block runs.

        Raises ConfigError for a stage that is not allowed, PublishConflict when the lease is lost.
        """
        self.check()
        if self.allowed is not None and name not in self.allowed:
            command = "encode" if name == "prepare" else name
            raise ConfigError(
                f"{name} is not done for this catalogue and configuration: run {command} first, or nightly"
            )
        return self.progress.stage(name, total, unit)

    def with_config(self, config: Config) -> "Run":
        return replace(self, config=config)


def open_run(config: Config, progress: Progress, allowed: frozenset[str] | None = None) -> Run:
    """Opens the stores of a run; nothing is contacted yet.

    Raises ConfigError for a folder that Ray deletes with the job.
    """
    store, workspace = open_kept("store", config.store, config.s3), open_kept("workspace", config.workspace, config.s3)
    return Run(config, store, workspace, progress, allowed)


def open_kept(setting: str, url: str, s3: S3Settings) -> Store:
    store = open_store(url, s3)
    if isinstance(store, LocalStore) and is_deleted_with_job(Path(store.url.removeprefix("file://"))):
        raise ConfigError(
            f"{setting}: {store.url} is in Ray's copy of --working-dir, which is deleted after the job: name a folder "
            "by its absolute path, or s3://"
        )
    return store
