"""How graphs are built, and on how many hits they are measured. No hnswlib here: a release file names these."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class IndexParams:
    """How a graph is built. More of either costs build time and buys recall; M also costs memory."""

    M: int = 16
    """Links of an element on each upper layer; twice as many on the lowest."""
    ef_construction: int = 200
    """Candidates kept while an element is inserted."""
    seed: int = 1
    """Draws the layers of the elements."""
    builder: Literal["faiss"] | None = None
    """What links the elements; None is hnswlib, the only one in releases that do not say."""


K = 10
