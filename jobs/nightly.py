"""The whole rebuild, and each of its stages alone: prepare → encode → build → validate → publish."""

import json
from dataclasses import dataclass

from cluster.session import ray_session
from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.store import Store, open_store

from .build import build
from .config import Config
from .encode import encode, identify_encoder
from .prepare import prepare
from .progress import Progress
from .publish import Published, publish
from .validate import validate
from .workspace import Artifact

RATES_KEY = "rates.json"
ROWS_TO_TELL = 2_000


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
    encoder = identify_encoder(config)
    with ray_session(config.ray.address):
        workspace = open_store(config.workspace, config.s3)
        prepared = prepare(config, workspace, encoder.fingerprint if encoder else None, progress)
        encoded = encode(config, prepared, encoder, progress)
        if last_stage == "encode":
            return Outcome(prepared, encoded)
        built = build(config, prepared, encoded, progress)
        if last_stage == "build":
            return Outcome(prepared, encoded, built)
        validated = validate(config, prepared, built, parent, progress)
        if last_stage == "validate":
            return Outcome(prepared, encoded, built, validated)
        published = publish(config, prepared, built, validated, parent, progress)
        keep_rates(workspace, encoded, built, progress)
        return Outcome(prepared, encoded, built, validated, published)


def current_release(config: Config) -> Release | None:
    """The release that this run will follow; None in a store that has none."""
    store = open_store(config.store, config.s3)
    numbers = release_numbers(store)
    return read_release(store, numbers[-1]) if numbers else None


def keep_rates(workspace: Store, encoded: Artifact, built: Artifact, progress: Progress) -> None:
    """Notes rows/s of encoding and building for the next plan, when this run did enough to tell."""
    rows = {
        "encode": encoded.require_marker()["num_encoded"],
        "build": sum(shard["num_items"] for shard in built.require_marker()["shards"] if not shard["is_reused"]),
    }
    rates = {
        name: count / progress.seconds[name]
        for name, count in rows.items()
        if count >= ROWS_TO_TELL and name in progress.seconds
    }
    if rates:
        workspace.put(RATES_KEY, json.dumps({**read_rates(workspace), **rates}).encode())


def read_rates(workspace: Store) -> dict[str, float]:
    """Rows/s of the stages `encode` and `build`, as the last large run in this workspace had them."""
    return json.loads(workspace.get(RATES_KEY)) if workspace.head(RATES_KEY) else {}
