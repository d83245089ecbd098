"""Where recall is lost: in the precision of the vectors, in the graphs, in merging the shards.

The last two are told apart by whether a true neighbour was found by its own shard. The first is an estimate: for a few
items, their nearest ones are encoded anew in float32 and full dimension, and ranked by that.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from indexing.catalogue import parse_templates, render_texts
from indexing.encoder import load_encoder
from indexing.validation import SCORE_TOLERANCE, K, recall_by_score

from .config import Config
from .encode import local_model

NUM_ITEMS, NUM_NEAR = 12, 2 * K

Near = tuple[np.ndarray, np.ndarray]
"""Texts (str objects) and scores, each (NUM_ITEMS, at most NUM_NEAR), best first, of the items nearest to some."""


def found_by_graph(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """bool (num_queries, k): which of a shard's true scores its graph has found too; both scores (num_queries, k)."""
    is_found: np.ndarray = (np.abs(found[:, None, :] - exact[:, :, None]) <= SCORE_TOLERANCE).any(axis=2)
    return is_found


def texts_of(config: Config, metadata: pa.Table, labels: np.ndarray) -> np.ndarray:
    """The texts of a shard's labels, str objects of the same shape."""
    templates = parse_templates(config.catalogue.text, metadata.column_names, list(config.item_types()))
    texts: np.ndarray = render_texts(metadata.take(pa.array(labels.ravel())), templates).to_numpy(zero_copy_only=False)
    return texts.reshape(labels.shape)


def merge_near(one: Near, other: Near) -> Near:
    texts, scores = (np.concatenate(parts, axis=1) for parts in zip(one, other, strict=True))
    order = np.lexsort((texts.astype(str), -scores), axis=1)[:, :NUM_NEAR]
    return np.take_along_axis(texts, order, axis=1), np.take_along_axis(scores, order, axis=1)


def precision_loss(config: Config, near: Near) -> float:
    """The share of the ten nearest that are others when the vectors are float32 and have all their dimensions."""
    texts = near[0]
    encoder = load_encoder(local_model(config), replace(config.encoder.settings(), dtype="float32", dim=None))
    vectors = encoder.encode(texts.ravel().tolist()).reshape(*texts.shape, -1)
    scores = np.einsum("nkd,nd->nk", vectors, vectors[:, 0])  # the nearest item is the item itself
    kept, truth = (-np.sort(-part, axis=1)[:, :K] for part in (scores[:, :K], scores))
    return float(1 - recall_by_score(kept, truth).mean())
