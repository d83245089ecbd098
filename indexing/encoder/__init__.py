"""Texts to unit vectors. Only this package uses torch, which is imported when an encoder is loaded, not before."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from indexing.encoder.locate import encoder_digest, encoder_files, resolve_model
from indexing.encoder.settings import EncoderSettings, EncodeStats
from indexing.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from indexing.encoder.encoder import Encoder

# oneDNN caches the code it generates for each matrix shape, 1,024 by default. Batches have thousands of shapes: an
# encoding worker grew to 2.9 GB (measured); with 128 kept it stays below 1 GB and is no slower.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

__all__ = [
    "EncodeStats",
    "EncoderSettings",
    "can_encode",
    "encoder_digest",
    "encoder_files",
    "load_encoder",
    "load_tokeniser",
    "require_text",
    "resolve_dtype",
    "resolve_model",
]


def require_text() -> None:
    """Raises ConfigError where the packages that encode text are not installed."""
    if module := _missing_module():
        raise ConfigError(f"encoding text needs {module}, which is not installed: pip install 'nightcrate[text]'")


def can_encode() -> bool:
    """Whether the packages that encode text are installed."""
    return _missing_module() is None


def _missing_module() -> str | None:
    modules = ("torch", "transformers", "tokenizers", "safetensors")
    return next((module for module in modules if importlib.util.find_spec(module) is None), None)


def resolve_dtype(settings: EncoderSettings) -> str | None:
    """The number format in which `load_encoder` would load here; None where this machine has no such device."""
    require_text()
    from indexing.encoder.device import dtype_here

    return dtype_here(settings.dtype, settings.device)


def load_encoder(path: Path, settings: EncoderSettings, *, num_threads: int | None = None) -> "Encoder":
    """Load a sentence-transformers folder (or a plain transformers one); downloads nothing and runs none of its code.

    num_threads sets torch's threads for the whole process. Raises ConfigError naming what is missing or unsupported,
    and where the extra `text` is not installed.
    """
    require_text()
    from indexing.encoder.load import load

    return load(path, settings, num_threads=num_threads)


def load_tokeniser(path: Path, settings: EncoderSettings) -> Callable[[Sequence[str]], "pa.Table"]:
    """What makes documents TOKENISED for `Encoder.encode_tokens`. It can be pickled, and needs no torch.

    Raises as `load_encoder` does.
    """
    require_text()
    from indexing.encoder.load import load_tokeniser as load

    return load(path, settings)
