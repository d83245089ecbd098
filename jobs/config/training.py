"""The keys under `training` and `evaluation`."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from indexing.errors import ConfigError

SOURCES = ("clicks", "reformulations", "title", "title_creator", "creator", "prefix", "typo")
"""Where pairs come from. Their order seeds the draws of each: only ever append."""
METRIC_NAMES = ("nDCG@10", "MRR@10", "hit@10", "recall@10", "recall@30", "recall@100")


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """Hard negatives, mined from the current release of the store."""

    per_query: int = 32
    """At most; 0 mines none."""
    first_rank: int = 10
    """Where the window of ranks begins: most of what stands above is relevant and only not known to be."""
    last_rank: int = 200
    margin: float = 0.05
    """How far below the best known positive a negative must score, as a share of that score."""

    def __post_init__(self) -> None:
        """Raises ConfigError naming the key, what was expected and what came."""
        checks = [
            ("per_query", "0 or more", self.per_query >= 0),
            ("first_rank", "at least 1", self.first_rank >= 1),
            ("last_rank", "at least first_rank", self.last_rank >= self.first_rank),
            ("margin", "a share from 0 to 1", 0 <= self.margin <= 1),
        ]
        require("training.negatives", self, checks)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    interactions: str | None = None
    """Parquet of search logs (a file or a folder, local or s3://): query, item_id, query_group, weight …"""
    shares: dict[str, float] = field(
        default_factory=lambda: {"clicks": 0.8, "reformulations": 0.1, "title_creator": 0.1}
    )
    """Of each batch: clicks, reformulations, and queries made of items: title, title_creator, creator, prefix, typo."""
    steps: int = 500
    batch_pairs: int = 128
    num_negatives: int = 32
    """Further items that each query of a batch is held against."""
    hard_share: float = 0.5
    """Of these, mined ones at the last step; at the first step none, in between linearly more."""
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    learning_rate: float = 2e-4
    warmup: float = 0.1
    """Share of the steps in which the rate rises; after that it falls linearly to nothing."""
    weight_decay: float = 0.01
    temperature: float = 0.05
    log_q: float = 1.0
    """Strength of the correction for popular items: 0 none, 1 in full."""
    dims: list[int] = field(default_factory=list)
    """Matryoshka dimensions trained beside the full one."""
    max_grad_norm: float = 1.0
    max_tokens: int = 64
    """Longer texts are truncated while training."""
    graph_tokens: int = 32_768
    """Padded tokens of a step whose activations are kept; above that they are computed twice (gradient caching)."""
    separate: bool = False
    """Two towers, for queries and for items, which start as copies of one."""
    blend: float = 0.0
    """Share of the old weights in the result, which holds what the encoder knew before."""
    checkpoint_every: int = 100
    """Steps after which a killed run can go on; also after the last."""
    num_workers: int = 1
    cpus_per_worker: int = 1
    """CPUs, and torch threads, of one worker: on one machine without a GPU, one worker of all CPUs is the fastest."""
    use_gpu: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError naming the key, what was expected and what came."""
        at_least_one = ("steps", "batch_pairs", "max_tokens", "graph_tokens", "checkpoint_every", "num_workers")
        above_zero = ("learning_rate", "temperature", "max_grad_norm")
        shares = ("hard_share", "warmup", "blend", "log_q")
        checks: list[tuple[str, str, bool]] = [
            *((name, "at least 1", getattr(self, name) >= 1) for name in (*at_least_one, "cpus_per_worker")),
            *((name, "a number above 0", getattr(self, name) > 0) for name in above_zero),
            *((name, "a number from 0 to 1", 0 <= getattr(self, name) <= 1) for name in shares),
            *((name, "0 or more", getattr(self, name) >= 0) for name in ("num_negatives", "weight_decay", "seed")),
            ("dims", "numbers of at least 1", all(dim >= 1 for dim in self.dims)),
            ("shares", f"shares of {', '.join(SOURCES)}", self.shares.keys() <= set(SOURCES)),
            (
                "shares",
                "shares from 0 up, one above 0",
                min(self.shares.values(), default=0) >= 0 < sum(self.shares.values()),
            ),
        ]
        require("training", self, checks)

    def hard_share_at(self, step: int) -> float:
        return self.hard_share * step / max(1, self.steps - 1)

    def rate_at(self, step: int) -> float:
        """The factor of `learning_rate`: linear warm-up, then linear decay."""
        rising = max(1, round(self.warmup * self.steps))
        return min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    interactions: str | None = None
    """Parquet of search logs that training does not see: other query groups."""
    metric: str = "nDCG@10"
    """What a new encoder must be better in, beyond the bootstrap interval."""
    max_loss: float = 0.05
    """How far the new encoder may fall behind on any slice, in the metric; less than this, or it is not accepted."""
    depth: int = 300
    """Items retrieved for a query; slices leave items out, so more than the deepest metric needs."""
    bm25: bool = True
    """Also measure BM25, which holds all texts in memory."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError naming the key, what was expected and what came."""
        checks = [
            ("metric", f"one of {', '.join(METRIC_NAMES)}", self.metric in METRIC_NAMES),
            ("max_loss", "0 or more", self.max_loss >= 0),
            ("depth", "at least 100", self.depth >= 100),
        ]
        require("evaluation", self, checks)


def require(section: str, settings: object, checks: Iterable[tuple[str, str, bool]]) -> None:
    for name, expected, holds in checks:
        if not holds:
            raise ConfigError(f"{section}.{name}: expected {expected}, got {getattr(settings, name)!r}")
