"""The release that a run follows."""

from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.store import Store


def current_release(store: Store) -> Release | None:
    """None in a store that has no release yet."""
    numbers = release_numbers(store)
    return read_release(store, numbers[-1]) if numbers else None
