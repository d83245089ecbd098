"""Hard negatives: what the published release finds for a query, and nobody is known to have wanted.

Only candidates that score clearly below the best known positive are taken (positive-aware mining, de Souza P. Moreira
et al. 2024, arXiv:2407.15831): most items that rank higher are relevant, just not known to be.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.encoder.encoder import Encoder
from indexing.ranks import numbers
from indexing.release.manifest import Release
from indexing.search.held_encoder import load_release_encoder
from indexing.store import Store
from indexing.store.cache import BlobCache, default_cache_folder
from jobs.config.training import NegativesConfig
from jobs.inputs.queries import sample_queries
from jobs.quality.best_hits import BestHits, renumber
from jobs.quality.full_search import ReleaseFiles, find_best
from jobs.training.encoder.losses import known_positives
from jobs.workspace.spreadsheet import csv_bytes

QUERIES_PER_BLOCK = 1024
SEARCHES_PER_BLOCK = 8192
"""Pairs of a query and one of its groups that are looked up at once, each for all hits of the query."""
NOTHING = np.empty((0, 0), np.int32)


@dataclass(frozen=True)
class Mined:
    """The negatives of each query, best first, in arrays (num_queries, most negatives of a query)."""

    queries: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    """string (num_queries,), sorted."""
    ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    """string: each found item once."""
    items: np.ndarray = field(default_factory=NOTHING.copy)
    """int32: rows of `ids`, -1 where a query has fewer."""
    ranks: np.ndarray = field(default_factory=NOTHING.copy)
    """int32, from 1."""
    scores: np.ndarray = field(default_factory=lambda: NOTHING.astype(np.float32))
    """float32."""

    def rows(self, pairs: pa.Table, items: pa.Table) -> np.ndarray:
        """int64 (num_pairs, most negatives of a query): rows of `items`, -1 where a query has fewer."""
        numbers = pc.index_in(self.ids, value_set=items["item_id"].combine_chunks()).fill_null(-1)
        of_ids = np.append(numbers.to_numpy(), -1).astype(np.int64)
        none = np.full((1, self.items.shape[1]), -1, np.int64)  # the last row: queries without any
        table = np.concatenate([of_ids[self.items], none])
        places = pc.index_in(pairs["query"], value_set=self.queries).fill_null(len(self.queries))
        of_pairs: np.ndarray = table[places.to_numpy()]
        return of_pairs

    def sample(self, num_queries: int) -> bytes:
        """CSV for a person to look at: query, rank, score, item_id of queries chosen by hash."""
        has_any = pa.array((self.items >= 0).any(axis=1))
        queries = sample_queries(self.queries.filter(has_any).to_pylist(), num_queries)
        rows: list[tuple[object, ...]] = [("query", "rank", "score", "item_id")]
        for query in queries:
            number = self.queries.index(query).as_py()
            found = self.items[number] >= 0
            ids = self.ids.take(pa.array(self.items[number, found])).to_pylist()
            scores = [round(score, 4) for score in self.scores[number, found].tolist()]
            rows += zip([query] * len(ids), self.ranks[number, found].tolist(), scores, ids, strict=True)
        return csv_bytes(rows)


def mine(release: Release, store: Store, workspace: Store, pairs: pa.Table, settings: NegativesConfig) -> Mined:
    """Negatives for the queries of `pairs` by the release's own encoder and graphs, each of which is loaded once.

    Memory: some 20 bytes × queries × `last_rank`, and the ids of all hits.
    """
    assert release.encoder is not None
    queries = pc.unique(pairs["query"]).sort()
    if not len(queries):
        return Mined()
    encoder = load_release_encoder(store, BlobCache(default_cache_folder()), release.encoder)
    files = ReleaseFiles(release.collections, release.dim, workspace, store)
    best = find_best(files, encode_queries(encoder, queries), settings.last_rank)
    return choose(queries, best, known_hits(queries, best, pairs), settings)


def encode_queries(encoder: Encoder, queries: pa.Array) -> np.ndarray:
    """float32 (num_queries, dim)."""
    vectors = np.empty((len(queries), encoder.dim), np.float32)
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        texts = queries[start : start + QUERIES_PER_BLOCK].to_pylist()
        vectors[start : start + len(texts)] = encoder.encode(texts, kind="query")
    return vectors


def known_hits(queries: pa.Array, best: BestHits, pairs: pa.Table) -> np.ndarray:
    """bool, of the shape of `best.items`: whether a pair of any of the query's groups leads to the item.

    So what another query of the group led to is known too. `queries` are those of `best`.
    """
    query, group = pc.index_in(pairs["query"], value_set=queries).to_numpy(), numbers(pairs["query_group"])[0]
    wanted = pc.unique(pairs["item_id"])
    item, num_items = pc.index_in(pairs["item_id"], value_set=wanted).to_numpy(), len(wanted) + 1
    others = num_items - 1
    item_of_id = pc.index_in(best.ids, value_set=wanted.cast(best.ids.type)).fill_null(others).to_numpy()
    known = np.unique(group.astype(np.int64) * num_items + item)
    num_groups = int(group.max()) + 1
    searches = np.unique(query.astype(np.int64) * num_groups + group)
    is_known = np.zeros(best.items.shape, bool)
    for start in range(0, len(searches), SEARCHES_PER_BLOCK):
        of_search, groups = np.divmod(searches[start : start + SEARCHES_PER_BLOCK], num_groups)
        found = known_positives(groups, item_of_id[best.items[of_search]], known, num_items)
        rows, firsts = np.unique(of_search, return_index=True)
        is_known[rows] |= np.logical_or.reduceat(found, firsts, axis=0)
    return is_known


def choose(queries: pa.Array, best: BestHits, is_known: np.ndarray, settings: NegativesConfig) -> Mined:
    """Of each ranking: ranks in the window, none of them known, all below the best known one by the margin."""
    num_queries = len(queries)
    best_known = best.scores[np.arange(num_queries), is_known.argmax(axis=1)].astype(np.float64)
    limit = np.where(is_known.any(axis=1), best_known * (1 - settings.margin), -np.inf)
    is_negative = ~is_known & (best.scores <= limit[:, None])
    is_negative[:, : settings.first_rank - 1] = False
    is_negative &= np.cumsum(is_negative, axis=1, dtype=np.int32) <= settings.per_query
    rows, columns = np.nonzero(is_negative)
    counts = is_negative.sum(axis=1)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    used, found = renumber(best.items[rows, columns], len(best.ids))
    items = np.full((num_queries, counts.max()), -1, np.int32)
    ranks, scores = np.zeros(items.shape, np.int32), np.zeros(items.shape, np.float32)
    items[rows, places], ranks[rows, places], scores[rows, places] = found, columns + 1, best.scores[rows, columns]
    return Mined(queries, best.ids.take(pa.array(used)).cast(pa.string()), items, ranks, scores)
