"""Where recall is lost, on cases where it is known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from flow.worlds import SYLLABLES, make_config, words
from omegaconf import OmegaConf
from support.tiny_encoder import write_tiny_encoder

from indexing.dense.exact import exact_search
from indexing.encoder import load_encoder
from indexing.encoder.encoder import Encoder
from jobs.config.load import load_config
from jobs.config.schema import Config
from jobs.inputs.encoder import read_encoder
from jobs.inputs.rows import RowRules
from jobs.quality.recall_loss import (
    NUM_ITEMS,
    NUM_NEAR,
    encode_again,
    mean_by_slice,
    merge_near,
    precision_loss,
    texts_of,
    worst_skew,
)

TEXTS = [words(np.random.default_rng(number), 4) for number in range(200)]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attribution")
    model = write_tiny_encoder(folder / "model", [" ".join(SYLLABLES)])
    OmegaConf.save(OmegaConf.create(make_config(folder, model)), folder / "config.yaml")
    return folder / "config.yaml"


def reference_of(config: Config) -> Encoder:
    encoder = read_encoder(config)
    assert encoder is not None
    return encoder.load_reference()


def near(config: Config, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """The texts of these rows that are nearest to the first twelve, by the vectors that the configuration makes."""
    encoder = load_encoder(Path(config.encoder.model), config.encoder.settings())
    vectors = encoder.encode(TEXTS)
    metadata = pa.table({"item_type": ["track"] * len(TEXTS), "title": TEXTS, "creators": [[]] * len(TEXTS)})
    found, scores = exact_search(vectors[rows], vectors[:12], NUM_NEAR)
    rules = RowRules(metadata.schema, config.item_types(), config.catalogue.text, npy=None, dim=None)
    return texts_of(rules, metadata, np.arange(len(TEXTS))[rows][found]), scores


def test_the_nearest_texts_of_two_shards_are_those_of_both(config_path: Path) -> None:
    config = load_config(str(config_path), ["catalogue.text={default: '{title}'}"])
    together = near(config, slice(None))
    apart = merge_near(near(config, slice(100, None)), near(config, slice(None, 100)))
    assert (together[0] == apart[0]).all()
    np.testing.assert_allclose(together[1], apart[1], atol=1e-6)
    assert together[0][:, 0].tolist() == TEXTS[:12]


def test_full_vectors_lose_nothing_and_short_ones_lose_much(config_path: Path) -> None:
    text = "catalogue.text={default: '{title}'}"
    full = load_config(str(config_path), [text, "encoder.dtype=float32"])
    short = load_config(str(config_path), [text, "encoder.dtype=float32", "encoder.dim=3"])
    losses = [
        precision_loss(found, encode_again(reference_of(config), found))
        for config, found in ((config, near(config, slice(None))) for config in (full, short))
    ]
    assert losses[0].tolist() == [0] * NUM_ITEMS
    assert losses[1].mean() > 0.2


def test_losses_are_reported_for_slices_that_have_enough_of_the_items() -> None:
    slices = {"a": np.arange(50) < 4, "b": np.arange(50) == 5, "c": np.arange(50) >= 4}
    losses = np.array([0.4, 0.2, 0.0, 0.2, *[0.1] * 8])
    assert mean_by_slice(losses, slices) == pytest.approx({"all": 1.6 / 12, "a": 0.2, "c": 0.1})


def test_vectors_of_another_encoder_are_far_from_the_encoders_own(config_path: Path, tmp_path: Path) -> None:
    config = load_config(str(config_path), ["catalogue.text={default: '{title}'}", "encoder.dim=16"])
    again = encode_again(reference_of(config), near(config, slice(None)))
    settings = config.encoder.settings()
    stored = load_encoder(Path(config.encoder.model), settings).encode(TEXTS[:NUM_ITEMS])
    assert worst_skew(stored, again) > 0.999
    other = write_tiny_encoder(tmp_path / "other", [" ".join(SYLLABLES)], seed=8)
    assert worst_skew(load_encoder(other, settings).encode(TEXTS[:NUM_ITEMS]), again) < 0.9
