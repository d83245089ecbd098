"""How well an encoder finds what people looked for: full retrieval over the catalogue, exact and through HNSW.

Two encoders are measured on the same queries, and so is BM25. What is compared is the difference on each query,
with a bootstrap interval over query groups.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from indexing.dense.exact import exact_search
from jobs.evaluation.bm25 import bm25_search
from jobs.evaluation.judgements import Judgements
from jobs.evaluation.metrics import Ranking, measure, paired_bootstrap, slice_relevant
from jobs.evaluation.report import Difference, EvaluationReport
from jobs.inputs.inputs import Inputs
from jobs.inputs.rows import row_texts
from jobs.nightly import run_stages, without_damaged
from jobs.quality.full_search import built_files, search_release
from jobs.quality.slices import MIN_SLICE, slice_popularity
from jobs.run import Run
from jobs.workspace.buckets import DISPLAY, IDS, read_bucket_file

HNSW_K = 100
"""Hits asked of the graphs, which search with `ef_search` or this, whichever is more: as `search -k 100` does."""


def measure_encoder(
    run: Run, inputs: Inputs, judgements: Judgements, seen: set[str] | None
) -> dict[str, dict[str, np.ndarray]]:
    """Ranker or slice → metric → float64 (num_queries,), NaN for queries that do not count there, of the encoder.

    Its vectors and shards are made as nightly would, or found in the workspace. Raises what the stages raise.
    """
    outcome = without_damaged(inputs, lambda inputs: run_stages(run, inputs, "validate"))
    assert outcome.built is not None and outcome.validated is not None and inputs.encoder is not None
    files = built_files(run, outcome.built.shards, outcome.validated.report.collections)
    encoder = inputs.encoder.load()
    queries, depth = encoder.encode(judgements.texts, kind="query"), run.config.evaluation.depth
    exact = Ranking(queries=judgements.names, item_ids=search_release(files, queries, depth, exact=True)[0])
    graph = Ranking(queries=judgements.names, item_ids=search_release(files, queries, HNSW_K)[0])
    results = {"exact": measure(exact, judgements.relevant), "hnsw": measure(graph, judgements.relevant)}
    results |= measure_slices(exact, results["exact"], judgements, seen)
    if judgements.general.num_rows:
        titles, texts = (judgements.general[name].to_pylist() for name in ("title", "description"))
        rows, _ = exact_search(encoder.encode(texts), encoder.encode(titles, kind="query"), 100)
        results["general"] = measure_general(rows)
    return results


def measure_slices(
    exact: Ranking, whole: Mapping[str, np.ndarray], judgements: Judgements, seen: set[str] | None
) -> dict[str, dict[str, np.ndarray]]:
    """By kind of query, and by the relevant items: seen in training or not, popular or not, and of each type.

    `whole` is what `measure` returns for the whole ranking.
    """
    results = {}
    for kind in sorted(set(filter(None, judgements.kinds))):
        is_other = np.array(judgements.kinds, object) != kind
        results[f"query kind {kind}"] = {name: np.where(is_other, np.nan, values) for name, values in whole.items()}
    for name, keep in item_slices(judgements.items, seen).items():
        results[name] = measure(*slice_relevant(exact, judgements.relevant, keep))
    counted = {name: np.isfinite(metrics["nDCG@10"]).sum() for name, metrics in results.items()}
    return {name: metrics for name, metrics in results.items() if counted[name] >= MIN_SLICE}


def item_slices(items: pa.Table, seen: set[str] | None) -> dict[str, set[str]]:
    """Name of a slice → ids of its items. `seen`: the items that training saw, None where that is not known."""
    ids, types = items["item_id"].to_pylist(), items["item_type"].to_pylist()
    names, popularity = np.array(ids, object), items["popularity"].cast(pa.float64()).to_numpy()
    slices = {}
    if seen is not None:
        slices = {"seen in training": seen.intersection(ids), "unseen in training": set(ids) - seen}
    slices |= {name: set(names[rows]) for name, rows in slice_popularity(popularity).items()}
    for kind in sorted(set(types)):
        slices[f"item type {kind}"] = {item for item, of in zip(ids, types, strict=True) if of == kind}
    return {name: of_slice for name, of_slice in slices.items() if of_slice}


def measure_general(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of query q, row q is the one relevant text."""
    names = np.array([str(row) for row in range(len(rows))], object)
    return measure(Ranking(queries=list(names), item_ids=names[rows]), {name: {name} for name in names})


def measure_bm25(run: Run, inputs: Inputs, judgements: Judgements) -> dict[str, np.ndarray]:
    """Metric → float64 (num_queries,). Reads all texts that `encode` would encode into memory."""
    prepared = run_stages(run, inputs, "encode").prepared
    assert prepared is not None
    ids, texts = [], []
    for number in prepared.buckets:
        ids += read_bucket_file(run.workspace, prepared.path, IDS, number)["item_id"].to_pylist()
        texts += row_texts(inputs.rules, read_bucket_file(run.workspace, prepared.path, DISPLAY, number)).to_pylist()
    rows = bm25_search(texts, judgements.texts, run.config.evaluation.depth)
    found = np.array(ids, object)[rows]
    found[rows < 0] = None
    return measure(Ranking(queries=judgements.names, item_ids=found), judgements.relevant)


def compare(
    judgements: Judgements, rankers: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], seed: int
) -> EvaluationReport:
    """The report: means of each ranker, whole and by slice, and the differences of the first to each other one."""
    first, *others = rankers
    differences: dict[str, dict[str, dict[str, Difference]]] = {}
    for other in others:
        differences[other] = {}
        for part in sorted(rankers[first].keys() & rankers[other].keys()):
            groups = judgements.groups if part != "general" else None
            new, old = rankers[first][part], rankers[other][part]
            differences[other][part] = {name: difference(new[name], old[name], groups, seed) for name in new}
    return EvaluationReport(
        num_queries=len(judgements.texts),
        num_unknown_items=judgements.num_unknown,
        rankers={name: {part: means(metrics) for part, metrics in of.items()} for name, of in rankers.items()},
        differences=differences,
    )


def means(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in metrics.items()}


def difference(new: np.ndarray, old: np.ndarray, groups: list[str] | None, seed: int) -> Difference:
    """With its bootstrap interval over groups; without groups each query is its own."""
    found = paired_bootstrap(new, old, groups or [str(row) for row in range(len(new))], seed=seed)
    return Difference(*(float(value) if np.isfinite(value) else None for value in (found.mean, found.low, found.high)))
