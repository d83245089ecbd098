"""Training without padding: vectors and gradients are those of transformers' own forward pass."""

from pathlib import Path

import pytest
import torch
from encoder.tiny_models import TEXTS, write_transformer

from indexing.encoder import EncoderSettings
from indexing.encoder.backbone import PaddedBackbone
from jobs.training.encoder import trainable as trainable_module
from jobs.training.encoder.trainable import TrainableEncoder
from jobs.training.encoder.unpadded import PackedBackbone


def gradients(folder: Path, backbone: type) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Vectors of all texts, and the gradient of a sum over them, by name of weight."""
    encoder = TrainableEncoder(folder, EncoderSettings(model=str(folder), dtype="float32", batch_tokens=200))
    assert type(encoder.tower("query").backbone) is backbone
    vectors = torch.zeros(len(TEXTS), encoder.dim)
    for batch in encoder.batches(TEXTS, "query"):
        vectors = vectors.index_copy(0, torch.from_numpy(batch.rows), encoder(batch, "query"))
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return vectors.detach(), {
        name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_gradients_without_padding_are_those_of_padded_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = write_transformer(tmp_path, kind)
    vectors, packed = gradients(folder, PackedBackbone)
    monkeypatch.setattr(trainable_module, "is_bert", lambda config: False)
    expected, padded = gradients(folder, PaddedBackbone)
    torch.testing.assert_close(vectors, expected)
    assert packed.keys() == padded.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_saved_configuration_does_not_name_our_attention(tmp_path: Path) -> None:
    folder = write_transformer(tmp_path / "model", "bert")
    TrainableEncoder(folder, EncoderSettings(model=str(folder))).save(tmp_path / "saved")
    assert "nightcrate" not in (tmp_path / "saved" / "config.json").read_text()


def test_decoders_are_left_to_transformers(tmp_path: Path) -> None:
    folder = write_transformer(tmp_path, "llama")
    encoder = TrainableEncoder(folder, EncoderSettings(model=str(folder), dtype="float32"))
    assert type(encoder.tower("query").backbone) is PaddedBackbone
    assert encoder.tower("query").model.config._attn_implementation == "eager"
