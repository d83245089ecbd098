"""Makes and reads releases: encoder, vectors and HNSW shards that belong together, published in one step.

from indexing import open_release

release = open_release("s3://bucket/prefix")
for hit in release.search("rainy sunday piano", k=10):
    print(hit.score, hit.item_id, hit.metadata["title"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexing.search.open import open_release
    from indexing.search.results import Hit, OpenRelease, Results
    from indexing.serving.live import LiveRelease

__all__ = ["Hit", "LiveRelease", "OpenRelease", "Results", "open_release"]

MODULES = {"open_release": "indexing.search.open", "LiveRelease": "indexing.serving.live"}


def __getattr__(name: str) -> Any:
    """Imports the search on first use, so that a job that only wants `indexing.errors` doesn't pay for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES.get(name, "indexing.search.results")), name)
