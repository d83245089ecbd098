"""The encoder of a run: where it is, and what identifies it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from indexing.encoder import EncoderSettings, encoder_files, load_encoder, resolve_model
from indexing.encoder.locate import files_digest
from indexing.errors import ConfigError, DamagedError
from indexing.release.encoder_entry import EncoderFile
from indexing.release.registry import digest_of_url, encoder_url, newest_encoder
from indexing.store import Store
from indexing.store.blobs import file_blob
from indexing.store.cache import default_cache_folder
from jobs.config.schema import Config
from jobs.workspace.fingerprint import fingerprint

if TYPE_CHECKING:
    from indexing.encoder.encoder import Encoder

FORMAT = 1
"""Raised when the way in which vectors are made changes, whatever the settings."""
LATEST = "latest"


@dataclass(frozen=True)
class EncoderInput:
    """An encoder on this machine, its files hashed once."""

    folder: Path
    files: tuple[EncoderFile, ...]
    """By path."""
    digest: str
    """Of all files."""
    fingerprint: str
    """Changes with anything that changes vectors: files, truncation, dimension, the precision asked for."""
    settings: EncoderSettings

    def load(self) -> "Encoder":
        return load_encoder(self.folder, self.settings)

    def load_reference(self) -> "Encoder":
        """The same in float32 and with all its dimensions."""
        return load_encoder(self.folder, replace(self.settings, dtype="float32", dim=None))


def read_encoder(config: Config) -> EncoderInput | None:
    """The encoder that `encoder.model` names, fetched where it is remote; None where vectors come precomputed.

    Raises DamagedError where an accepted encoder of a store is not the one that its registry names.
    """
    if config.vectors.path:
        return None
    folder = resolve_model(config.encoder.model, cache_dir=default_cache_folder(), s3=config.s3)
    files = tuple(EncoderFile(path=name, blob=file_blob(folder / name)) for name in encoder_files(folder))
    digest, encoder = files_digest((file.path, file.blob.sha256) for file in files), config.encoder
    expected = digest_of_url(config.encoder.model)
    if expected not in (None, digest):
        raise DamagedError(
            f"encoder.model: expected {config.encoder.model} to have the digest in its name, got {digest}: its files "
            "were altered, or some are missing; train again, or name another model"
        )
    name = fingerprint(FORMAT, digest, encoder.max_tokens, encoder.dim, encoder.dtype)
    return EncoderInput(folder, files, digest, name, encoder.settings())


def pin_encoder(config: Config, store: Store) -> Config:
    """The configuration with `encoder.model: latest` replaced by the address of the newest accepted encoder.

    Done once per run, so that all its stages and workers use the same one. Raises ConfigError where there is none.
    """
    if config.encoder.model != LATEST:
        return config
    entry = newest_encoder(store)
    if entry is None:
        raise ConfigError(
            f"encoder.model: latest, but {config.store} has no accepted encoder: run train first, or name a model"
        )
    return with_encoder(config, encoder_url(store, entry))


def with_encoder(config: Config, model: str) -> Config:
    return replace(config, encoder=replace(config.encoder, model=model))
