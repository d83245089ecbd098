"""All that comes from outside a run, read once, before Ray starts and before anything is written."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from indexing.key_ranges import KeyRange
from indexing.release.manifest import Release, Shard
from jobs.inputs.catalogue import Source, scan_source
from jobs.inputs.encoder import EncoderInput, read_encoder
from jobs.inputs.parent import Current, current_release
from jobs.inputs.queries import query_texts
from jobs.inputs.rows import RowRules, row_rules
from jobs.run import Run


@dataclass(frozen=True)
class BaseShard:
    """A published shard; plain data, so that Ray can ship it."""

    collection: str
    shard: Shard
    keys: KeyRange
    dim: int

    def __str__(self) -> str:
        return f"{self.collection}/{self.shard.number}"

    def has(self, collection: str, keys: KeyRange) -> bool:
        """Whether it may hold items of the collection with keys of the range."""
        return self.collection == collection and self.keys.overlaps(keys)


@dataclass(frozen=True)
class Inputs:
    source: Source
    rules: RowRules
    encoder: EncoderInput | None
    """None where vectors come precomputed."""
    current: int | None
    """The number of the release that this run follows; None in a store that has none."""
    parent: Release | None
    """That release; None where there is none, or nothing of it may be carried over."""
    base: Release | None
    """Whose vectors are used for rows that have not changed; mostly the parent."""
    damaged: frozenset[str]
    """Shards of `base` whose vectors cannot be read."""
    queries: list[str] | None
    """Of `validation.queries`; None where there are none."""

    @property
    def encoder_fingerprint(self) -> str | None:
        return self.encoder.fingerprint if self.encoder else None

    @property
    def base_shards(self) -> list[BaseShard]:
        """The shards of `base` whose vectors can be read."""
        if self.base is None:
            return []
        found = [
            BaseShard(collection.name, shard, self.base.keys_of(collection, shard), self.base.dim)
            for collection in self.base.collections
            for shard in collection.shards
        ]
        return [shard for shard in found if str(shard) not in self.damaged]

    def following(self, parent: Release | None) -> "Inputs":
        return replace(self, parent=parent)

    def without(self, damaged: Collection[str]) -> "Inputs":
        return replace(self, damaged=self.damaged.union(damaged))

    def on_top_of(self, current: Current) -> "Inputs":
        return replace(self, current=current.number, parent=current.release, base=current.release)


def read_inputs(run: Run) -> Inputs:
    """Raises ConfigError, DataError or StoreUnavailable for what is missing or wrong."""
    current, encoder = current_release(run.store, run.config.publish), read_encoder(run.config)
    source = scan_source(run.config, run.workspace)
    rules, queries = row_rules(run.config, source), query_texts(run.config)
    return Inputs(
        source, rules, encoder, current.number, current.release, current.release, damaged=frozenset(), queries=queries
    )
