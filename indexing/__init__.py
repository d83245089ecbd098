"""Makes and reads releases: encoder, vectors and HNSW shards that belong together, published in one step.

from indexing import open_release

release = open_release("s3://bucket/prefix")
for hit in release.search("rainy sunday piano", k=10):
    print(hit.score, hit.item_id, hit.metadata["title"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexing.live import LiveRelease
    from indexing.search import Hit, OpenRelease, Results, open_release

__all__ = ["Hit", "LiveRelease", "OpenRelease", "Results", "open_release"]


def __getattr__(name: str) -> Any:
    """Imports the search on first use, so that a job that only wants `indexing.errors` doesn't pay for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from indexing import live, search

    return live.LiveRelease if name == "LiveRelease" else getattr(search, name)
