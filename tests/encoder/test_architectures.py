"""Every architecture gives the vectors of sentence-transformers up to its longest text, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoder.tiny_models import DECODERS, TEXTS, lowest_cosine, write_transformer
from sentence_transformers import SentenceTransformer

from indexing.encoder.encoder import Encoder
from indexing.errors import ConfigError

Load = Callable[..., Encoder]

# Positions begin at padding_idx + 1: 80 of the configuration are enough for 79 tokens, as the padding is token 0 here.
AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "longformer",
    "data2vec-text",
    "ibert",
    "xlm-roberta-xl",
    "luke",
)
FROM_ZERO = (
    *("bert", "distilbert", "albert", "electra", "ernie", "megatron-bert", "rembert", "roformer", "squeezebert"),
    *("deberta-v2", "modernbert", "nomic_bert", "eurobert"),
)
WITHOUT_LIMIT = ("t5", "mt5", "umt5")
LONG = "piano jazz rainy news sunday " * 60
LIMITS = (
    dict.fromkeys(AFTER_PADDING, 79) | dict.fromkeys((*FROM_ZERO, *DECODERS), 80) | dict.fromkeys(WITHOUT_LIMIT, 200)
)
LIMITS["mpnet"] = 78  # it always takes token 1 for padding


@pytest.mark.case(21)
@pytest.mark.parametrize("kind", LIMITS)
def test_every_architecture_equals_sentence_transformers_up_to_its_longest_text(
    load: Load, tmp_path: Path, kind: str
) -> None:
    folder = write_transformer(tmp_path / "model", kind)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 100_000}))
    peer = SentenceTransformer(str(folder), device="cpu")
    encoder = load(folder, max_tokens=200)
    assert encoder.max_tokens == LIMITS[kind]
    peer.max_seq_length = encoder.max_tokens
    texts = [*(text for text in TEXTS if text), LONG, "[PAD] a padding token [PAD] inside of a text"]
    # One text at a time: sentence-transformers' own GPT-2 and OPT see other positions where a text is padded.
    assert lowest_cosine(encoder.encode(texts), peer.encode(texts, batch_size=1)) >= 0.99999
    assert encoder.stats.num_truncated >= 1


@pytest.mark.parametrize("padding_id", [0, 1, 5])
def test_the_longest_text_follows_from_where_positions_begin(load: Load, tmp_path: Path, padding_id: int) -> None:
    folder = write_transformer(tmp_path / "model", "roberta", pad_token_id=padding_id)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 512}))
    encoder = load(folder, max_tokens=512)
    assert encoder.max_tokens == 80 - padding_id - 1
    encoder.encode([LONG])
    assert encoder.stats.num_tokens == encoder.max_tokens


@pytest.mark.parametrize("kind", ["convbert", "nystromformer", "yoso", "fnet"])
def test_an_architecture_that_sees_padding_is_refused(load: Load, tmp_path: Path, kind: str) -> None:
    folder = write_transformer(tmp_path / "model", kind)
    with pytest.raises(ConfigError, match=f"do not depend on the other texts of a batch, got a {kind}"):
        load(folder)


@pytest.mark.parametrize("kind", ["convbert", "bert"])
def test_a_vector_does_not_depend_on_the_batch_it_is_in(tmp_path: Path, kind: str) -> None:
    peer = SentenceTransformer(str(write_transformer(tmp_path / "model", kind)), device="cpu")
    together, alone = peer.encode(TEXTS[:4]), peer.encode(TEXTS[:4], batch_size=1)
    assert np.allclose(together, alone, atol=1e-3) == (kind == "bert")  # why convbert is refused


def test_an_architecture_without_token_embeddings_is_refused(load: Load, tmp_path: Path) -> None:
    folder = write_transformer(tmp_path / "model", "canine")
    with pytest.raises(ConfigError, match="expected token embeddings, got a canine"):
        load(folder)
