"""The whole rebuild, and each of its stages alone: prepare → encode → build → validate → publish."""

import datetime
import importlib.metadata
import json
import logging
import os
import socket
from dataclasses import dataclass, replace

from cluster.session import ray_session
from indexing.release.lease import hold_lease
from indexing.release.manifest import Release
from indexing.store import Store, open_store
from indexing.store.preflight import preflight
from jobs.config.schema import Config
from jobs.inputs.catalogue import scan_source
from jobs.inputs.encoder import EncoderIdentity, identify_encoder, pin_encoder
from jobs.inputs.parent import current_release
from jobs.inputs.rows import part_settings
from jobs.progress import Progress
from jobs.stages.build import build
from jobs.stages.encode import encode
from jobs.stages.prepare import prepare
from jobs.stages.publish import Published, find_published, publish
from jobs.stages.validate import GatesFailed, validate
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.rates import RATES_KEY, read_rates
from jobs.workspace.records import built_shards

logger = logging.getLogger(__name__)
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
    config = pin_encoder(config)
    encoder = check_inputs(config)
    if last_stage != "publish":
        with ray_session(config.ray.address):
            return make(config, encoder, last_stage, current_release(config), progress)
    store, workspace = open_store(config.store, config.s3), open_store(config.workspace, config.s3)
    preflight_once(store, workspace)
    started = datetime.datetime.now(datetime.UTC)
    owner = f"process {os.getpid()} on {socket.gethostname()}, started {started:%F %T} UTC"
    with hold_lease(store, owner, wait=config.run.on_conflict == "wait") as lease:
        parent = current_release(config)
        with ray_session(config.ray.address):
            outcome = make(config, encoder, "build", parent, progress)
            assert outcome.built is not None
            if published := find_published(config, outcome.prepared, outcome.built, parent):
                return replace(outcome, published=published)
            outcome = make_sound(config, encoder, outcome, parent, progress)
            assert outcome.built is not None and outcome.validated is not None
            published = publish(config, outcome.prepared, outcome.built, outcome.validated, parent, lease, progress)
        keep_rates(workspace, outcome.encoded, outcome.built, progress)
    return replace(outcome, published=published)


def check_inputs(config: Config) -> EncoderIdentity | None:
    """The encoder. Raises for what is missing or wrong, before Ray starts and before anything is written."""
    current_release(config)
    encoder, source = identify_encoder(config), scan_source(config)
    part_settings(config, source, encoder.fingerprint if encoder else None)
    return encoder


def make(
    config: Config, encoder: EncoderIdentity | None, last_stage: str, parent: Release | None, progress: Progress
) -> Outcome:
    """Everything up to the release itself."""
    workspace = open_store(config.workspace, config.s3)
    prepared = prepare(config, workspace, encoder.fingerprint if encoder else None, progress)
    outcome = Outcome(prepared, encode(config, prepared, encoder, progress))
    if last_stage == "encode":
        return outcome
    outcome = replace(outcome, built=build(config, prepared, outcome.encoded, encoder, parent, progress))
    return outcome if last_stage == "build" else make_sound(config, encoder, outcome, parent, progress)


def make_sound(
    config: Config, encoder: EncoderIdentity | None, outcome: Outcome, parent: Release | None, progress: Progress
) -> Outcome:
    """With `validated`. Where the gates don't hold for shards with deltas, all are built whole and measured again."""
    assert outcome.built is not None
    try:
        return replace(outcome, validated=validate(config, outcome.prepared, outcome.built, parent, progress))
    except GatesFailed as error:
        if not any(shard.entry.deltas or shard.entry.tombstones for shard in built_shards(outcome.built)):
            raise
        logger.warning("validate: with deltas %s; building all shards whole", error)
    built = build(config, outcome.prepared, outcome.encoded, encoder, None, progress)
    return replace(outcome, built=built, validated=validate(config, outcome.prepared, built, parent, progress))


def preflight_once(store: Store, workspace: Store) -> None:
    """Races for a scratch key in the store; the workspace notes that this store and client have stood the test."""
    name = fingerprint(store.url, importlib.metadata.version("boto3"))
    key = f"preflight/{name}.json"
    if workspace.head(key) is None:
        preflight(store)
        workspace.put(key, json.dumps({"store": store.url}).encode())


def keep_rates(workspace: Store, encoded: Artifact, built: Artifact, progress: Progress) -> None:
    """Notes rows/s of encoding and building for the next plan, when this run did enough to tell."""
    rows = {
        "encode": encoded.require_marker()["num_encoded"],
        "build": sum(shard.num_indexed for shard in built_shards(built)),
    }
    rates = {
        name: count / progress.seconds[name]
        for name, count in rows.items()
        if count >= ROWS_TO_TELL and name in progress.seconds
    }
    if rates:
        workspace.put(RATES_KEY, json.dumps({**read_rates(workspace), **rates}).encode())
