"""The encoder of a run: where it is, and what identifies it."""

from dataclasses import dataclass, replace
from pathlib import Path

from indexing.encoder import encoder_digest, resolve_model
from indexing.errors import ConfigError
from indexing.release.registry import encoder_url, newest
from indexing.store import open_store
from indexing.store.cache import default_cache_folder
from jobs.config.schema import Config
from jobs.workspace.fingerprint import fingerprint

LATEST = "latest"


def pin_encoder(config: Config) -> Config:
    """The configuration with `encoder.model: latest` replaced by where the newest accepted encoder lies.

    Done once a run, so that all its stages and workers use the same one. Raises ConfigError where there is none.
    """
    if config.encoder.model != LATEST:
        return config
    store = open_store(config.store, config.s3)
    entry = newest(store)
    if entry is None:
        raise ConfigError(
            f"encoder.model: latest, but {config.store} has no accepted encoder: run train first, or name a model"
        )
    return replace(config, encoder=replace(config.encoder, model=encoder_url(store, entry)))


FORMAT = 1


@dataclass(frozen=True)
class EncoderIdentity:
    digest: str
    """Of the encoder's files."""
    fingerprint: str
    """Changes with anything that changes vectors: files, truncation, dimension, the precision asked for."""


def local_model(config: Config) -> Path:
    """The encoder's folder on this machine; fetched once where it is remote."""
    return resolve_model(config.encoder.model, cache_dir=default_cache_folder(), s3=config.s3)


def identify_encoder(config: Config) -> EncoderIdentity | None:
    """None where vectors come ready-made."""
    if config.vectors.path:
        return None
    digest, encoder = encoder_digest(local_model(config)), config.encoder
    return EncoderIdentity(digest, fingerprint(FORMAT, digest, encoder.max_tokens, encoder.dim, encoder.dtype))


def with_encoder(config: Config, model: str) -> Config:
    return replace(config, encoder=replace(config.encoder, model=model))
