"""The whole rebuild, and each of its stages alone: prepare → encode → build → validate → publish."""

from dataclasses import dataclass

from cluster.session import ray_session
from indexing.encoder import encoder_digest
from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.store import open_store

from .build import build, built_artifact
from .config import Config
from .encode import encode, encoded_artifact, encoder_fingerprint, local_model
from .prepare import prepare, prepared_artifact, scan_catalogue
from .progress import Progress
from .publish import Published, publish
from .validate import validate, validated_artifact
from .workspace import Artifact


@dataclass(frozen=True)
class Outcome:
    """What a run has made; None for the stages behind the one that was asked for."""

    prepared: Artifact
    encoded: Artifact
    built: Artifact | None = None
    validated: Artifact | None = None
    published: Published | None = None


def run(config: Config, last_stage: str, progress: Progress) -> Outcome:
    """The stages up to `last_stage`; those whose artifact is complete are skipped.

    Raises what the stages raise; nothing is published unless every stage before has ended well.
    """
    parent = current_release(config)
    with ray_session(config.ray.address):
        digest = encoder_digest(local_model(config))
        encoder = encoder_fingerprint(digest, config.encoder)
        workspace = open_store(config.workspace, config.s3)
        prepared = prepare(config, workspace, encoder, progress)
        encoded = encode(config, prepared, digest, encoder, progress)
        if last_stage == "encode":
            return Outcome(prepared, encoded)
        built = build(config, prepared, encoded, progress)
        if last_stage == "build":
            return Outcome(prepared, encoded, built)
        validated = validate(config, prepared, built, parent, progress)
        if last_stage == "validate":
            return Outcome(prepared, encoded, built, validated)
        published = publish(config, prepared, built, validated, parent, progress)
        return Outcome(prepared, encoded, built, validated, published)


def current_release(config: Config) -> Release | None:
    """The release that this run will follow; None in a store that has none."""
    store = open_store(config.store, config.s3)
    numbers = release_numbers(store)
    return read_release(store, numbers[-1]) if numbers else None
