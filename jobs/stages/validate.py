"""Stage 4: the shards as they would be served, against exact search; chooses ef_search; every gate must pass.

What is loaded is the very file that will be published, with its digest checked; first in a separate process, so that a
crash of hnswlib fails the validation and not the run.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from indexing.errors import ValidationFailed
from indexing.release.codec import to_plain
from indexing.release.manifest import Release
from indexing.release.report import BuildReport, CollectionReport, Gate
from jobs.inputs.encoder import EncoderInput
from jobs.inputs.inputs import Inputs
from jobs.quality.carried import ToMeasure, carried_gates, find_new, with_new
from jobs.quality.choose_ef import choose_ef_search, measure, pick_ef
from jobs.quality.drift import drift_gates
from jobs.quality.gates import at_least, at_most, equal
from jobs.quality.inspect import inspect_shards
from jobs.quality.recall import EF_GRID
from jobs.quality.recall_loss import NUM_ITEMS, Near, encode_again, mean_by_slice, precision_loss, worst_skew
from jobs.quality.sample import Sample
from jobs.quality.shard_search import Hits, search_shards
from jobs.run import Run
from jobs.stages.build import why_rebuild
from jobs.stages.publish import config_fingerprint
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.records import Built, BuiltShard, Prepared, Validated

if TYPE_CHECKING:
    from indexing.encoder.encoder import Encoder

FORMAT = 7
MIN_SKEW_COSINE = 0.98
"""bfloat16 keeps 0.999; another encoder, prompt or template is far below."""
FIRST_EFS = tuple(ef for ef in EF_GRID if ef <= 64)
"""Tried first: most catalogues need no more, and the larger ones would take 6/7 of the time."""

QuerySets = dict[str, dict[str, np.ndarray]]
"""Collection → "items", then "queries" where there are some → float32 (num_queries, dim)."""


class GatesFailed(ValidationFailed):
    """Figures of the built shards miss their thresholds; shards without deltas may reach them."""


def validate(run: Run, inputs: Inputs, prepared: Prepared, built: Built) -> Validated:
    """Runs the stage, or skips it when the same shards have passed the same gates; the record holds the report.

    Raises GatesFailed when gates fail; the report is written all the same. Raises ValidationFailed for a graph that
    crashes hnswlib.
    """
    artifact = validated_artifact(run, inputs, built)
    if done := artifact.read():
        return done
    report, peak_memory = measure_shards(run, inputs, prepared, built)
    raise_failed_gates(report, artifact)
    validated = Validated(path=artifact.path, report=report, peak_memory_bytes=peak_memory)
    artifact.write(validated)
    return validated


def validated_artifact(run: Run, inputs: Inputs, built: Built) -> Artifact[Validated]:
    config, parent = run.config, inputs.parent
    counts = {collection.name: collection.num_items for collection in parent.collections} if parent else None
    digests = [to_plain(shard.entry) for shard in built.shards]
    compared = parent.writer_id if parent else None
    name = fingerprint(
        FORMAT, built.path, digests, config.validation, inputs.queries, config.index.recall_target, counts, compared
    )
    return Artifact(run.workspace, f"validations/{name}", Validated)


def measure_shards(run: Run, inputs: Inputs, prepared: Prepared, built: Built) -> tuple[BuildReport, int]:
    """The report, and the peak memory of the largest worker in bytes."""
    to_measure = find_new(measured_parent(run, inputs), built, run.config.validation)
    measured, gates, queries, peak = measure_new(run, inputs, to_measure)
    reports: dict[str, CollectionReport] = {}
    for name, expected in prepared.num_items.items():
        num_items = sum(shard.entry.num_items for shard in built.shards if shard.collection == name)
        if carried := to_measure.carried.get(name):
            reports[name] = with_new(carried, measured.get(name), num_items)
            gates += carried_gates(name, reports[name], run.config.validation, run.config.index.recall_target)
        else:
            reports[name] = measured[name]
        gates += count_gates(run, inputs, name, num_items, expected)
    gates += drift_gates(run, inputs, built.shards, reports, queries)
    return BuildReport(collections=reports, gates=tuple(gates)), peak


def measured_parent(run: Run, inputs: Inputs) -> Release | None:
    """The parent release, where its figures were measured with tonight's configuration."""
    parent = inputs.parent
    is_same = parent and parent.config_fingerprint == config_fingerprint(run.config, inputs.queries)
    return parent if is_same and not why_rebuild(run.config, inputs) else None


def measure_new(
    run: Run, inputs: Inputs, to_measure: ToMeasure
) -> tuple[dict[str, CollectionReport], list[Gate], np.ndarray | None, int]:
    """(figures by collection, gates, the configured queries' vectors, the peak memory of the largest worker)."""
    shards = to_measure.shards
    with ThreadPoolExecutor(1) as pool, run.stage("validate", 2 * to_measure.num_items) as bar:
        # While Ray's workers inspect, and in one thread: torch's settings are those of the process.
        encoder = inputs.encoder
        encoding = pool.submit(encode_queries, encoder, inputs.queries) if encoder and inputs.queries else None
        loading = pool.submit(encoder.load_reference) if encoder and shards else None
        inspection = inspect_shards(run, shards, bar)
        queries = encoding.result() if encoding else None
        query_sets = make_query_sets(inspection.samples, queries)

        def search(shards: Sequence[BuiltShard], sets: QuerySets, efs: Sequence[int]) -> dict[str, Hits]:
            return search_shards(run, inputs.rules, shards, sets, efs, bar)

        hits = search_until_passed(run, shards, inspection.samples, query_sets, search)
    reference = loading.result() if loading else None
    reports: dict[str, CollectionReport] = {}
    gates = list(inspection.gates)
    for name, sample in sorted(inspection.samples.items()):
        num_items = sum(shard.entry.num_items for shard in shards if shard.collection == name)
        report, found = choose_ef_search(run.config, name, num_items, sample, query_sets[name], hits[name])
        gates += found
        near = hits[name].near
        if reference and near:
            report, skew = add_precision(report, name, reference, sample, near)
            gates.append(skew)
        reports[name] = report
    peak = max([inspection.peak_memory_bytes, *(found.peak_memory_bytes for found in hits.values())])
    return reports, gates, queries, peak


def encode_queries(encoder: EncoderInput, texts: list[str]) -> np.ndarray:
    """float32 (num_texts, dim), encoded as queries."""
    return encoder.load().encode(texts, kind="query")


def make_query_sets(samples: Mapping[str, Sample], queries: np.ndarray | None) -> QuerySets:
    more = {} if queries is None else {"queries": queries}
    return {name: {"items": sample.vectors, **more} for name, sample in samples.items()}


def search_until_passed(
    run: Run,
    shards: Sequence[BuiltShard],
    samples: Mapping[str, Sample],
    query_sets: QuerySets,
    search: Callable[[Sequence[BuiltShard], QuerySets, Sequence[int]], dict[str, Hits]],
) -> dict[str, Hits]:
    """Hits of each collection with the small ef; with all of them where none of the small ones passes its gates."""
    hits = search(shards, query_sets, FIRST_EFS)
    unmet = {
        name: sets
        for name, sets in query_sets.items()
        if pick_ef(run.config, name, samples[name], measure(sets, hits[name])) is None
    }
    if unmet:
        again = search([shard for shard in shards if shard.collection in unmet], unmet, EF_GRID)
        hits |= {name: replace(found, near=hits[name].near) for name, found in again.items()}
    return hits


def add_precision(
    report: CollectionReport, name: str, reference: "Encoder", sample: Sample, near: Near
) -> tuple[CollectionReport, Gate]:
    """The report with the loss by vector precision, and the gate that vectors and encoder belong together."""
    encoded = encode_again(reference, near)
    losses = precision_loss(near, encoded)[: len(sample.vectors)]
    recall_loss = dict(report.recall_loss)
    for part, loss in mean_by_slice(losses, sample.slices).items():
        recall_loss[part] = replace(recall_loss[part], vector_precision=loss)
    skew = worst_skew(sample.vectors[:NUM_ITEMS], encoded)
    gate = at_least("cosine of stored vectors with the encoder's own", name, skew, MIN_SKEW_COSINE)
    return replace(report, recall_loss=recall_loss), gate


def count_gates(run: Run, inputs: Inputs, name: str, num_items: int, expected: int) -> list[Gate]:
    gates = [equal("number of items", name, num_items, expected)]
    parent = inputs.parent
    before = {collection.name: collection.num_items for collection in parent.collections}.get(name) if parent else None
    if before:
        change = abs(expected - before) / before
        gates.append(at_most("change of row count", name, change, run.config.validation.max_row_change))
    return gates


def raise_failed_gates(report: BuildReport, artifact: Artifact[Validated]) -> None:
    failed = [gate for gate in report.gates if not gate.holds]
    if not failed:
        return
    key = artifact.key("failed.json")
    artifact.store.put(key, report.to_bytes())
    texts = [f"{gate.scope}: {gate.name} is {gate.value:.4g}, expected {gate.expected}" for gate in failed]
    raise GatesFailed(
        f"{len(failed)} of {len(report.gates)} gates fail: {'; '.join(texts[:3])}; nothing was published; "
        f"report: {artifact.store.describe(key)}"
    )
