"""Where an encoder comes from, and what identifies it. No torch here."""

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from indexing.encoder.layout import read_layout
from indexing.errors import ConfigError, first_line
from indexing.store.blobs import hash_file
from indexing.store.cache import make_folder

if TYPE_CHECKING:
    from indexing.store import S3Settings, Store


log = logging.getLogger(__name__)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.safetensors")


def resolve_model(model: str, *, cache_dir: Path, s3: "S3Settings | None" = None) -> Path:
    """The local folder of a model, downloaded first where it is remote.

    A model in s3:// is downloaded into cache_dir, a hub model into the cache shared by all Hugging Face tools
    (HF_HOME, HF_HUB_CACHE). With HF_HUB_OFFLINE only what is in that cache is used.

    Raises ConfigError when there is no such folder, package or hub model, StoreUnavailable from s3://.
    """
    if model.startswith("package://"):
        return _package_folder(model)
    if model.startswith("s3://"):
        from indexing.store import open_store

        return download_model(open_store(model, s3), cache_dir)
    path = Path(os.path.expanduser(model.removeprefix("file://")))  # unlike Path's own it takes a user without a home
    if path.is_dir():
        return path.resolve()
    if model.startswith("file://") or path.exists() or not HUB_NAME.fullmatch(model):
        raise ConfigError(f"encoder.model: expected a model folder, got {model!r}, which is not a folder")
    return _hub_folder(model)


def encoder_files(path: Path) -> list[str]:
    """Relative POSIX names of the files that make up the encoder, sorted; a copy of just these encodes the same."""
    return list(read_layout(path).files)


def encoder_digest(path: Path) -> str:
    """`files_digest` of the encoder in a folder."""
    return files_digest((name, hash_file(path / name)) for name in encoder_files(path))


def files_digest(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over the names and digests of `encoder_files`, sorted by name: what identifies an encoder."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(files):
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()


def _package_folder(model: str) -> Path:
    """The package is found, never imported: a model needs no code."""
    name, _, folder = model.removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"encoder.model: expected an installed package {name!r} for {model}, got none")
    path = Path(next(iter(spec.submodule_search_locations)), *folder.split("/"))
    if not path.is_dir() or ".." in folder.split("/"):
        raise ConfigError(f"encoder.model: expected the folder {folder!r} in package {name!r}, got none")
    return path


def download_model(store: "Store", cache_dir: Path) -> Path:
    """Download all objects of a store once; the copy is named by the digest of the listing, so a change is noticed.

    Raises ConfigError when the store holds nothing, StoreUnavailable.
    """
    listing = list(store.list(""))
    if not listing:
        raise ConfigError(f"encoder.model: expected model files at {store.url}, got none")
    stamps = "\n".join(f"{info.key} {info.size_bytes} {info.etag} {info.modified}" for info in listing)
    target = cache_dir / "models" / hashlib.sha256(f"{store.url}\n{stamps}".encode()).hexdigest()
    if target.is_dir():
        with suppress(OSError):  # a folder of another owner can be read, but not touched
            os.utime(target)
        return target
    make_folder(target.parent)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        for info in listing:
            if not info.key.endswith((".bin", ".onnx", ".h5", ".ot", ".msgpack", ".pt", ".pth")):
                (partial / info.key).parent.mkdir(parents=True, exist_ok=True)
                store.download(info.key, partial / info.key)
        os.rename(partial, target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def unused_models(cache_dir: Path, min_age_s: float) -> list[Path]:
    """Copies of models in s3:// that no process of this machine has asked for since `min_age_s`."""
    oldest = time.time() - min_age_s
    return sorted(path for path in (cache_dir / "models").glob("*") if path.is_dir() and path.stat().st_mtime < oldest)


def _hub_folder(model: str) -> Path:
    from huggingface_hub import snapshot_download

    # HTTPError is that of the HTTP client; errors of a proxy are of this class only.
    from huggingface_hub.errors import HFValidationError, HTTPError, IncompleteSnapshotError  # type: ignore[attr-defined]

    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_PATTERNS)))
    except IncompleteSnapshotError as error:
        # Another tool fetched fewer files; whether these are enough is found when the folder is read.
        return Path(error.snapshot_path)
    except (HTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"encoder.model: expected a folder or a reachable hub model, got {model!r}: {reason}"
        ) from error
