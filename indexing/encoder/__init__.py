"""Texts to unit vectors. Only this package knows torch, and it is imported when an encoder is loaded, not before."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from indexing.encoder.locate import encoder_digest, encoder_files, resolve_model
from indexing.encoder.settings import EncoderSettings, EncodeStats
from indexing.errors import ConfigError

if TYPE_CHECKING:
    from indexing.encoder.encoder import Encoder

# oneDNN keeps the code it made for each shape of a product, 1,024 by default. Batches have thousands of shapes: an
# encoding worker grew to 2.9 GB (measured); with 128 kept it stays below 1 GB and is no slower.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

__all__ = [
    "EncodeStats",
    "EncoderSettings",
    "encoder_digest",
    "encoder_files",
    "load_encoder",
    "require_text",
    "resolve_model",
]


def require_text() -> None:
    """Raises ConfigError where only the reader of releases is installed, without what encodes text."""
    for module in ("torch", "transformers", "tokenizers", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"encoding text needs {module}, which is not installed: pip install 'nightcrate[text]'")


def load_encoder(path: Path, settings: EncoderSettings, *, num_threads: int | None = None) -> "Encoder":
    """Load a sentence-transformers folder (or a plain transformers one); nothing is fetched, no code of it is run.

    num_threads sets torch's threads for the whole process. Raises ConfigError naming what is missing or unsupported,
    and where the extra `text` is not installed.
    """
    require_text()
    from indexing.encoder.load import load

    return load(path, settings, num_threads=num_threads)
