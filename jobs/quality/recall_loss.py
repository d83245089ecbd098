"""Where recall is lost: in the precision of the vectors, in the graphs, in merging the shards.

The last two are distinguished by whether a true neighbour was found by its own shard. The first is an estimate: for a
few items, their nearest ones are encoded again in float32 and full dimension, and ranked by that.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from indexing.dense.params import K
from indexing.ranks import text_ranks
from jobs.inputs.rows import RowRules, row_texts
from jobs.quality.recall import recall_by_score

if TYPE_CHECKING:
    from indexing.encoder.encoder import Encoder


NUM_ITEMS, NUM_NEAR = 12, 2 * K
MIN_ITEMS = 3
Near = tuple[np.ndarray, np.ndarray]
"""Texts (str objects) and scores, each (NUM_ITEMS, at most NUM_NEAR), best first, of the items nearest to a few."""


def texts_of(rules: RowRules, metadata: pa.Table, labels: np.ndarray) -> np.ndarray:
    """The texts of a shard's labels, str objects of the same shape."""
    texts: np.ndarray = row_texts(rules, metadata.take(pa.array(labels.ravel()))).to_numpy(zero_copy_only=False)
    return texts.reshape(labels.shape)


def merge_near(one: Near, other: Near) -> Near:
    texts, scores = (np.concatenate(parts, axis=1) for parts in zip(one, other, strict=True))
    order = np.lexsort((text_ranks(texts), -scores), axis=1)[:, :NUM_NEAR]
    return np.take_along_axis(texts, order, axis=1), np.take_along_axis(scores, order, axis=1)


def encode_again(reference: "Encoder", near: Near) -> np.ndarray:
    """float32 (NUM_ITEMS, at most NUM_NEAR, full dim), unit norm: the near texts by the encoder in float32."""
    texts = near[0]
    return reference.encode(texts.ravel().tolist()).reshape(*texts.shape, -1)


def precision_loss(near: Near, vectors: np.ndarray) -> np.ndarray:
    """float64 (NUM_ITEMS,): of each item, the share of its ten nearest that `encode_again`'s vectors would replace."""
    scores = np.einsum("nkd,nd->nk", vectors, vectors[:, 0])  # the nearest item is the item itself
    kept, truth = (-np.sort(-part, axis=1)[:, :K] for part in (scores[:, :K], scores))
    losses: np.ndarray = 1 - recall_by_score(kept, truth)
    return losses


def mean_by_slice(losses: np.ndarray, slices: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over all items, and over those of each slice (`slice_rows`) that has `MIN_ITEMS` of them."""
    rows = {"all": np.ones(len(losses), bool), **{name: of_slice[: len(losses)] for name, of_slice in slices.items()}}
    return {name: float(losses[chosen].mean()) for name, chosen in rows.items() if chosen.sum() >= MIN_ITEMS}


def worst_skew(stored: np.ndarray, vectors: np.ndarray) -> float:
    """The lowest cosine of items' stored vectors, float32 (NUM_ITEMS, dim), with what the encoder makes of their texts.

    Far below 1, queries would not be encoded by the encoder of the items.
    """
    again = vectors[: len(stored), 0, : stored.shape[1]]
    cosines = np.einsum("nd,nd->n", stored, again) / np.linalg.norm(again, axis=1)
    return float(cosines.min())
