"""Models made by sentence-transformers itself, and our encoder over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from encoder.tiny_models import write_transformer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from indexing.encoder import EncoderSettings, load_encoder
from indexing.encoder.encoder import Encoder

Make = Callable[..., SentenceTransformer]
Load = Callable[..., Encoder]


@pytest.fixture
def make_model(tmp_path: Path) -> Make:
    """make_model(pooling, head modules …) saves a model at tmp_path/model and returns sentence-transformers' own."""

    def make(
        pooling: str = "mean", head: Sequence[Any] = (), kind: str = "bert", **options: Any
    ) -> SentenceTransformer:
        include_prompt = options.pop("include_prompt", True)
        transformer = Transformer(str(write_transformer(tmp_path / "transformer", kind)))
        size = transformer.get_embedding_dimension()
        modules = [transformer, Pooling(size, pooling, include_prompt=include_prompt), *head]
        model = SentenceTransformer(modules=modules, device="cpu", **options)
        model.save(str(tmp_path / "model"), create_model_card=False)
        return SentenceTransformer(str(tmp_path / "model"), device="cpu")

    return make


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """load(path=tmp_path/model, **settings) with one thread and in float32 by default."""

    def load_(path: Path | None = None, **settings: Any) -> Encoder:
        options = {"device": "cpu", "dtype": "float32", "max_tokens": 64} | settings
        return load_encoder(path or tmp_path / "model", EncoderSettings(model="", **options), num_threads=1)

    return load_
