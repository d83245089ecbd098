"""What nightly would do, found without writing anything: every row is read, checked and fingerprinted, then compared.

The rows' keys stay in Ray's object store; a task looks at one range of ids, or one parent shard.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from rich.console import Console

from cluster.fanout import fan_out
from cluster.session import cluster_resources, ray_session
from indexing.id_keys import is_in
from indexing.key_ranges import KeyRange, key_range, num_shards, shard_range
from indexing.release.shard import read_live_rows, read_rows
from indexing.store import Store
from indexing.store.cache import downloads
from jobs.config.schema import Config
from jobs.inputs.catalogue import Part
from jobs.inputs.encoder import pin_encoder
from jobs.inputs.inputs import BaseShard, Inputs, read_inputs
from jobs.inputs.rows import RowRules, add_keys, check_part
from jobs.progress import Progress
from jobs.run import open_run
from jobs.stages.build import shards_before, why_rebuild
from jobs.stages.carry_over import plan_changes
from jobs.stages.publish import why_held
from jobs.workspace.buckets import buckets_of, num_buckets
from jobs.workspace.rates import read_rates
from jobs.workspace.vectors import row_keys

ROWS_PER_RANGE = 1_000_000
DEFAULT_RATES = {"encode": 400.0, "build": 2_100.0}
"""Rows/s of one core with AVX512-BF16: all-MiniLM-L6-v2 on texts of 21 tokens; HNSW at 384 dimensions, M 16, ef 200."""
WORKER_BYTES = 700_000_000
"""A worker with torch and pyarrow loaded, before any rows."""

Keys: TypeAlias = list[ray.ObjectRef[pa.Table]]
"""Each part's rows with id, collection, fingerprint and id key."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    num_rows: int
    num_bad: int
    num_to_encode: int
    num_reused: int
    """Texts whose vectors the parent release has."""
    changes: dict[str, int] | None
    """Items by what happened to them since the parent release: new, changed, unchanged, deleted; None without one."""
    collections: dict[str, tuple[int, int]]
    """name → (items, shards)."""
    index_bytes: int
    """Size of all HNSW files."""
    why_held: str | None
    """Why nightly would publish nothing: the hold of a rollback. None where it would publish."""
    why_rebuild: str | None
    """Why shards of the parent release cannot be carried over; None where all are, except those with large changes."""
    num_to_index: int
    """Items of the shards that are built whole."""
    seconds: float
    """Estimated, of encoding and building on the connected cluster."""
    is_measured: bool
    """Whether `seconds` follows rates that an earlier run in this workspace measured."""
    worker_bytes: int
    """Estimated peak memory of the largest worker."""


def make_plan(config: Config) -> Plan:
    """Raises what nightly would raise for the same configuration and catalogue, except for the quarantine's limit."""
    run = open_run(config, Progress(Console(quiet=True)))  # no stage of a night runs, so there is nothing to show
    run = run.with_config(pin_encoder(config, run.store))
    inputs = read_inputs(run)
    source, parent, index = inputs.source, inputs.parent, config.index
    with ray_session(config.ray.address):
        keys = survey(inputs)
        totals, num_texts = count_rows(keys, source.num_rows)
        shards = compare(keys, run.store, inputs, index.compact_at)
        num_cpus = cluster_resources().get("CPU", 1)
    reason = why_rebuild(run.config, inputs)
    before = shards_before(None if reason else parent)
    num_shards_of = {
        name: num_shards(count, index.rows_per_shard, before.get(name)) for name, count in sorted(totals.items())
    }
    num_to_index = totals.total() - (0 if reason else count_carried(num_shards_of, shards))
    num_known = sum(changes.num_known for changes in shards.values()) if inputs.encoder else 0
    num_to_encode = num_texts - num_known if inputs.encoder else 0
    item_bytes = 4 * find_dim(inputs) + 4 * (2 * index.M + 1) + 8
    rates = read_rates(run.workspace)
    rate = {name: rates.get(name, default * num_cpus) for name, default in DEFAULT_RATES.items()}
    largest = max((totals[name] >> (count.bit_length() - 1) for name, count in num_shards_of.items()), default=0)
    num_items = totals.total()
    return Plan(
        num_rows=source.num_rows,
        num_bad=source.num_rows - num_items,
        num_to_encode=num_to_encode,
        num_reused=num_known,
        changes=sum_changes(shards, num_items) if parent else None,
        collections={name: (totals[name], count) for name, count in num_shards_of.items()},
        index_bytes=num_items * item_bytes,
        why_held=why_held(run, inputs),
        why_rebuild=reason,
        num_to_index=num_to_index,
        seconds=num_to_encode / rate["encode"] + num_to_index / rate["build"],
        is_measured=set(rates) >= set(DEFAULT_RATES),
        worker_bytes=WORKER_BYTES + 2 * largest * item_bytes,
    )


def find_dim(inputs: Inputs) -> int:
    """The dimension of the vectors."""
    if inputs.encoder:
        return inputs.encoder.load().dim
    assert inputs.source.dim is not None
    return inputs.source.dim


def survey(inputs: Inputs) -> Keys:
    """The keys of each part's good rows, which stay in the object store."""
    keys: dict[int, ray.ObjectRef[pa.Table]] = {}

    def submit(part: Part) -> ray.ObjectRef[int]:
        refs = survey_part.remote(part, inputs.rules, inputs.encoder_fingerprint)
        # Ray types one reference; `num_returns=2` gives two.
        num_good, keys[part.number] = cast("tuple[ray.ObjectRef[int], ray.ObjectRef[pa.Table]]", refs)
        return num_good

    for _ in fan_out(submit, inputs.source.parts, what="plan"):
        pass
    return [keys[number] for number in sorted(keys)]


@ray.remote(num_returns=2)
def survey_part(part: Part, rules: RowRules, encoder_fingerprint: str | None) -> tuple[int, pa.Table]:
    columns = ["item_id", "id_key", "collection", "fingerprint"]
    batches = (add_keys(good, rules, encoder_fingerprint) for good, _ in check_part(part, rules))
    keys = pa.concat_tables([batch.select(columns) for batch in batches])
    return keys.num_rows, keys


def count_rows(keys: Keys, num_rows: int) -> tuple[Counter[str], int]:
    """(items of each collection, where of rows with one id the first counts; texts, those of a bucket once)."""
    num_ranges = -(-num_rows // ROWS_PER_RANGE)
    ranges = [key_range(number, num_ranges) for number in range(num_ranges)]
    total = num_buckets(num_rows)
    found = [
        counts for _, counts in fan_out(lambda keys_in: count_range.remote(keys, keys_in, total), ranges, what="plan")
    ]
    return sum((items for items, _ in found), Counter()), sum(texts for _, texts in found)


@ray.remote
def count_range(keys: Keys, keys_in: KeyRange, total: int) -> tuple[Counter[str], int]:
    rows = select_range(keys, "id_key", keys_in)
    ids = rows["item_id"].combine_chunks().dictionary_encode()
    rows = rows.take(pa.array(np.unique(ids.indices.to_numpy(), return_index=True)[1]))
    return Counter(rows["collection"].to_pylist()), count_texts(rows, total)


def count_texts(rows: pa.Table, total: int) -> int:
    """Those of each of the `total` buckets, equal ones once."""
    buckets = pa.array(buckets_of(rows["id_key"].to_numpy(), total))
    texts = pa.table({"bucket": buckets, "fingerprint": rows["fingerprint"]})
    num_texts: int = texts.group_by(texts.column_names).aggregate([]).num_rows
    return num_texts


def select_range(keys: Keys, column: str, keys_in: KeyRange) -> pa.Table:
    """The rows of all parts whose `column` lies in the range."""
    tables = []
    for table in ray.get(keys):
        tables.append(table.filter(pa.array(is_in(table[column].to_numpy(), keys_in))))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class ShardChanges:
    """What happened to a shard's items since the parent release."""

    changed: int
    unchanged: int
    deleted: int
    num_items: int
    """Tonight's."""
    num_to_index: int
    """All of them where the shard has to be built whole, else none."""
    num_known: int
    """Texts whose vectors the parent has, those of a bucket once."""


ShardKey = tuple[str, KeyRange]
"""Collection and id keys."""


def compare(keys: Keys, store: Store, inputs: Inputs, compact_at: float) -> dict[ShardKey, ShardChanges]:
    total = num_buckets(inputs.source.num_rows)
    found = fan_out(
        lambda base: compare_shard.remote(keys, store, base, compact_at, total), inputs.base_shards, what="plan"
    )
    return {(base.collection, base.keys): changes for base, changes in found}


@ray.remote
def compare_shard(keys: Keys, store: Store, base: BaseShard, compact_at: float, total: int) -> ShardChanges:
    with downloads(store) as fetch:
        labels, before = read_rows(fetch, base.shard, str(base)), read_live_rows(fetch, base.shard, str(base))
    now = select_range(keys, "id_key", base.keys).filter(pc.field("collection") == base.collection)
    is_carried = plan_changes(base.shard, labels, now, compact_at) is not None
    known = now.filter(pc.is_in(row_keys(now), value_set=row_keys(labels)))
    found = pc.index_in(before["item_id"], value_set=now["item_id"].combine_chunks())
    kept = before.filter(pc.is_valid(found))
    num_same = pc.sum(pc.equal(kept["fingerprint"], now["fingerprint"].take(found.drop_null()))).as_py() or 0
    return ShardChanges(
        changed=kept.num_rows - num_same,
        unchanged=num_same,
        deleted=before.num_rows - kept.num_rows,
        num_items=now.num_rows,
        num_to_index=0 if is_carried else now.num_rows,
        num_known=count_texts(known, total),
    )


def sum_changes(shards: dict[ShardKey, ShardChanges], num_items: int) -> dict[str, int]:
    """Items by what happened to them since the parent release."""
    names = ("changed", "unchanged", "deleted")
    counts = {name: sum(getattr(shard, name) for shard in shards.values()) for name in names}
    return {"new": num_items - counts["changed"] - counts["unchanged"], **counts}


def count_carried(num_shards_of: dict[str, int], shards: dict[ShardKey, ShardChanges]) -> int:
    """Items of the shards that are carried over: those that are a shard of the parent too, and have changed little."""
    tonight = [(name, shard_range(number, total)) for name, total in num_shards_of.items() for number in range(total)]
    return sum(shards[key].num_items - shards[key].num_to_index for key in tonight if key in shards)
