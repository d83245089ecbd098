"""The keys under `training` and `evaluation`."""

from dataclasses import field
from typing import Annotated, Literal, Self, get_args

from annotated_types import Ge, Gt, Le
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from jobs.config.fields import SETTINGS, Integer, LocalPath, Number, Share, conflict

PairSource = Literal["clicks", "reformulations", "title", "title_creator", "creator", "prefix", "typo"]
SOURCES: tuple[str, ...] = get_args(PairSource)
"""Where pairs come from. Their order seeds the draws of each: only ever append."""
MetricName = Literal["nDCG@10", "MRR@10", "hit@10", "recall@10", "recall@30", "recall@100"]
METRIC_NAMES: tuple[str, ...] = get_args(MetricName)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class NegativesConfig:
    """Hard negatives, mined from the current release of the store."""

    per_query: Annotated[Integer, Ge(0)] = 32
    """Maximum for a query; 0 mines none."""
    first_rank: Annotated[Integer, Ge(1)] = 10
    """First rank of the window: most items that rank higher are relevant, just not known to be."""
    last_rank: Annotated[Integer, Ge(1)] = 200
    """Last rank of the window, at least `first_rank`."""
    margin: Share = 0.05
    """How far below the best known positive a negative must score, as a share of that score."""

    @model_validator(mode="after")
    def _the_window_ends_after_it_begins(self) -> Self:
        if self.last_rank < self.first_rank:
            raise conflict("last_rank", "at least training.negatives.first_rank", self.last_rank)
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TrainingConfig:
    """How an encoder is fine-tuned on search logs."""

    interactions: LocalPath | None = None
    """Parquet of search logs (a file or a folder, local or s3://): query, item_id, query_group, weight …"""
    shares: dict[PairSource, Annotated[Number, Ge(0)]] = field(
        default_factory=lambda: {"clicks": 0.8, "reformulations": 0.1, "title_creator": 0.1}
    )
    """Of each batch: clicks, reformulations, or queries made from items (title, title_creator, creator, prefix, typo).
    """
    steps: Annotated[Integer, Ge(1)] = 500
    """Training steps, one batch each."""
    batch_pairs: Annotated[Integer, Ge(1)] = 128
    """Pairs of query and item in a batch."""
    num_negatives: Annotated[Integer, Ge(0)] = 32
    """Additional items that each query of a batch is compared with."""
    hard_share: Share = 0.5
    """Share of mined ones among these at the last step; it rises linearly from 0 at the first."""
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    learning_rate: Annotated[Number, Gt(0)] = 2e-4
    """The peak learning rate of AdamW, after the warm-up."""
    warmup: Share = 0.1
    """Share of the steps in which the rate rises; after that it falls linearly to zero."""
    weight_decay: Annotated[Number, Ge(0)] = 0.01
    """Decay of the weights in AdamW."""
    temperature: Annotated[Number, Gt(0)] = 0.05
    """Scores are divided by it in the loss: lower values weight the nearest items more."""
    log_q: Annotated[Number, Ge(0), Le(1)] = 1.0
    """Strength of the correction for popular items: 0 is none, 1 is full."""
    dims: list[Annotated[Integer, Ge(1)]] = field(default_factory=list)
    """Matryoshka dimensions trained in addition to the full one."""
    max_grad_norm: Annotated[Number, Gt(0)] = 1.0
    """Gradients with a larger norm are scaled down to this one."""
    max_tokens: Annotated[Integer, Ge(1)] = 64
    """Longer texts are truncated while training."""
    graph_tokens: Annotated[Integer, Ge(1)] = 32_768
    """Padded tokens of a step whose activations are kept; for more, they are computed twice (gradient caching)."""
    separate: bool = False
    """Two towers, for queries and for items, which start as copies of one."""
    blend: Share = 0.0
    """Share of the old weights in the result, which preserves what the encoder knew before."""
    checkpoint_every: Annotated[Integer, Ge(1)] = 100
    """Steps between checkpoints, from which a killed run resumes; there is one after the last step too."""
    num_workers: Annotated[Integer, Ge(1)] = 1
    """Processes that share each batch."""
    cpus_per_worker: Annotated[Integer, Ge(1)] = 1
    """CPUs, and torch threads, of one worker: on one machine without a GPU, one worker with all CPUs is fastest."""
    use_gpu: bool = False
    """One GPU for each worker."""
    seed: Annotated[Integer, Ge(0)] = 1
    """Of the random batches."""

    @model_validator(mode="after")
    def _some_share_is_above_zero(self) -> Self:
        if not sum(self.shares.values()) > 0:
            raise conflict("shares", "at least one share above 0", self.shares)
        return self

    def hard_share_at(self, step: int) -> float:
        return self.hard_share * step / max(1, self.steps - 1)

    def rate_at(self, step: int) -> float:
        """The factor of `learning_rate`: linear warm-up, then linear decay."""
        rising = max(1, round(self.warmup * self.steps))
        return min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising))


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class EvaluationConfig:
    """How an encoder is measured, and when a new one is accepted."""

    interactions: LocalPath | None = None
    """Parquet of search logs that training does not see: other query groups."""
    metric: MetricName = "nDCG@10"
    """The metric in which a new encoder must be better, beyond the bootstrap interval."""
    max_loss: Annotated[Number, Ge(0)] = 0.05
    """Largest loss in the metric, on any slice, with which a new encoder is still accepted."""
    depth: Annotated[Integer, Ge(100)] = 300
    """Items retrieved for a query: more than the deepest metric needs, since slices leave items out."""
    bm25: bool = True
    """Also measure BM25, which needs memory for all texts."""
    seed: Annotated[Integer, Ge(0)] = 1
    """Of the bootstrap samples."""
