"""The release that a run follows."""

from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.store import open_store
from jobs.config.schema import Config


def current_release(config: Config) -> Release | None:
    """The release that this run will follow; None in a store that has none."""
    store = open_store(config.store, config.s3)
    numbers = release_numbers(store)
    return read_release(store, numbers[-1]) if numbers else None
