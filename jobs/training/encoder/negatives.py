"""Hard negatives: what the published release finds for a query, and nobody is known to have wanted.

Only candidates that score clearly below the best known positive are taken (positive-aware mining, de Souza P. Moreira
et al. 2024, arXiv:2407.15831): most items that rank higher are relevant, just not known to be.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.release.manifest import Release
from indexing.search.held_encoder import load_release_encoder
from indexing.store import Store
from indexing.store.cache import BlobCache, default_cache_folder
from jobs.config.training import NegativesConfig
from jobs.inputs.queries import sample_queries
from jobs.quality.full_search import ReleaseFiles, search_release
from jobs.workspace.spreadsheet import csv_bytes

QUERIES_PER_BLOCK = 1024
NO_NEGATIVES = np.empty((1, 0), np.int64)


@dataclass(frozen=True)
class Negative:
    item_id: str
    rank: int
    """From 1."""
    score: float


@dataclass(frozen=True)
class Mined:
    by_query: dict[str, list[Negative]] = field(default_factory=dict)

    def item_ids(self) -> set[str]:
        return {negative.item_id for found in self.by_query.values() for negative in found}

    def rows(self, pairs: pa.Table, items: pa.Table) -> np.ndarray:
        """int64 (num_pairs, most negatives of a query): rows of `items`, -1 where a query has fewer."""
        if not self.by_query:
            return NO_NEGATIVES.repeat(pairs.num_rows, axis=0)
        width = max(map(len, self.by_query.values()))
        queries = sorted(self.by_query)
        table = np.full((len(queries) + 1, width), -1, np.int64)  # the last row: queries without any
        for number, query in enumerate(queries):
            ids = pa.array([negative.item_id for negative in self.by_query[query]], pa.string())
            rows = pc.index_in(ids, value_set=items["item_id"].combine_chunks()).fill_null(-1).to_numpy()
            table[number, : len(rows)] = rows
        places = pc.index_in(pairs["query"], value_set=pa.array(queries, pa.string())).fill_null(len(queries))
        of_pairs: np.ndarray = table[places.to_numpy()]
        return of_pairs

    def sample(self, num_queries: int) -> bytes:
        """CSV for a person to look at: query, rank, score, item_id of queries chosen by hash."""
        queries = sample_queries(list(self.by_query), num_queries)
        found = [(query, negative) for query in queries for negative in self.by_query[query]]
        rows = [(query, one.rank, round(one.score, 4), one.item_id) for query, one in found]
        return csv_bytes([("query", "rank", "score", "item_id"), *rows])


def mine(release: Release, store: Store, workspace: Store, pairs: pa.Table, settings: NegativesConfig) -> Mined:
    """Negatives for the queries of `pairs` by the release's own encoder and graphs, a block of queries at a time."""
    assert release.encoder is not None
    encoder = load_release_encoder(store, BlobCache(default_cache_folder()), release.encoder)
    files = ReleaseFiles(release.collections, release.dim, workspace, store)
    known = positives_by_query(pairs)
    queries, mined = sorted(known), {}
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        block = queries[start : start + QUERIES_PER_BLOCK]
        ids, scores = search_release(files, encoder.encode(block, kind="query"), settings.last_rank)
        for query, of_query, their_scores in zip(block, ids, scores, strict=True):
            if found := pick(of_query, their_scores, known[query], settings):
                mined[query] = found
    return Mined(mined)


def positives_by_query(pairs: pa.Table) -> dict[str, set[str]]:
    """Of a query: the items of every pair of its groups, so that another query of the group hides them too."""
    groups: dict[str, set[str]] = defaultdict(set)
    queries: dict[str, set[str]] = defaultdict(set)
    columns = (pairs[name].to_pylist() for name in ("query", "query_group", "item_id"))
    for query, group, item_id in zip(*columns, strict=True):
        groups[group].add(item_id)
        queries[query].add(group)
    return {query: set().union(*(groups[group] for group in of_query)) for query, of_query in queries.items()}


def pick(ids: Iterable[str], scores: np.ndarray, known: set[str], settings: NegativesConfig) -> list[Negative]:
    """Of a ranking, best first: ranks in the window, none of them known, all below the best known one by the margin."""
    ranking = [
        Negative(item_id, rank, float(score)) for rank, (item_id, score) in enumerate(zip(ids, scores, strict=True), 1)
    ]
    best = next((found.score for found in ranking if found.item_id in known), None)
    if best is None:
        return []
    return [
        found
        for found in ranking
        if found.rank >= settings.first_rank
        and found.item_id not in known
        and found.score <= best * (1 - settings.margin)
    ][: settings.per_query]
