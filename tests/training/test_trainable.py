"""What training saves: folders that sentence-transformers loads, and that give the vectors it trained."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from training.worlds import tiny_model

from indexing.encoder import EncoderSettings, load_encoder
from indexing.errors import ConfigError
from jobs.training.encoder.trainable import TrainableEncoder, blend

TEXTS = ["calm music", "piano river moon"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without modules.json."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def with_head(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with a Dense layer, saved by that library."""
    transformer = Transformer(str(plain))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), Dense(32, 24), Normalize()]
    folder = tmp_path_factory.mktemp("with head")
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


def settings_of(folder: Path) -> EncoderSettings:
    return EncoderSettings(model=str(folder), dtype="float32")


def learn(encoder: TrainableEncoder) -> None:
    """One step that moves every weight, those of the towers in different directions."""
    loss = torch.zeros(())
    for number, kind in enumerate(("query", "document")):
        for batch in encoder.batches(TEXTS, kind):
            loss = loss + (-1) ** number * encoder(batch, kind)[:, number].sum()
    loss.backward()
    with torch.no_grad():
        for weight in encoder.trainable():
            assert weight.grad is not None
            weight -= 0.1 * weight.grad


@pytest.mark.parametrize("model", ["plain", "with_head"])
def test_what_is_saved_is_what_sentence_transformers_loads(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    encoder = TrainableEncoder(folder, settings_of(folder))
    learn(encoder)
    encoder.save(tmp_path)
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS, normalize_embeddings=True)
    ours = load_encoder(tmp_path, settings_of(tmp_path)).encode(TEXTS)
    before = load_encoder(folder, settings_of(folder)).encode(TEXTS)
    assert (ours * expected).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (ours * before).sum(axis=1).max() < 0.9999


def test_two_towers_learn_apart_and_are_a_router_of_sentence_transformers(with_head: Path, tmp_path: Path) -> None:
    source = with_head
    for name in ("made of one", "trained on"):  # the second time, the folder is a Router already
        encoder = TrainableEncoder(source, settings_of(source), separate=True)
        learn(encoder)
        source = tmp_path / name
        encoder.save(source)
        peer = SentenceTransformer(str(source), device="cpu")
        ours = load_encoder(source, settings_of(source))
        queries, documents = ours.encode(TEXTS, kind="query"), ours.encode(TEXTS)
        expected = peer.encode_query(TEXTS, normalize_embeddings=True)
        assert (queries * expected).sum(axis=1) == pytest.approx(1, abs=1e-5)
        expected = peer.encode_document(TEXTS, normalize_embeddings=True)
        assert (documents * expected).sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (queries * documents).sum(axis=1).max() < 0.9999


def test_two_towers_of_a_folder_without_modules_are_refused(plain: Path, tmp_path: Path) -> None:
    encoder = TrainableEncoder(plain, settings_of(plain), separate=True)
    with pytest.raises(ConfigError, match=r"training\.separate: expected a folder with modules\.json"):
        encoder.save(tmp_path)


@pytest.mark.parametrize(("share", "moved"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_blending_moves_the_weights_back(plain: Path, share: float, moved: float) -> None:
    encoder = TrainableEncoder(plain, settings_of(plain))
    old = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 1
    blend(encoder, old, share)
    for name, weight in encoder.named_parameters():
        torch.testing.assert_close(weight, old[name] + moved)
