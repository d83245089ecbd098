"""The whole rebuild, and each of its stages alone: prepare → encode → build → validate → publish."""

import datetime
import importlib.metadata
import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.session import ray_session
from indexing.errors import ObjectNotFound, PublishConflict, StoreUnavailable
from indexing.release.lease import hold_lease
from indexing.release.signing import require_key
from indexing.store import Store
from indexing.store.preflight import preflight
from jobs.inputs.encoder import pin_encoder
from jobs.inputs.inputs import Inputs, read_inputs
from jobs.inputs.parent import current_release, publisher_key
from jobs.inputs.shared import require_shared
from jobs.run import Run
from jobs.stages.build import build, built_artifact
from jobs.stages.encode import encode, encoded_artifact
from jobs.stages.prepare import prepare, prepared_artifact
from jobs.stages.publish import Published, find_published, find_unchanged, publish, why_held
from jobs.stages.shard_rows import BaseDamaged
from jobs.stages.validate import GatesFailed, validate
from jobs.workspace.blobs import workspace_key
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.rates import keep_rates
from jobs.workspace.records import Built, Encoded, Prepared, Validated
from jobs.workspace.sweep import delete_night

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run has made; None for the stages after the requested one, and where nothing had to be done."""

    prepared: Prepared | None = None
    encoded: Encoded | None = None
    converted: tuple[str, ...] = ()
    """Folders of the workspace that have the catalogue as Parquet, where it was CSV or JSON lines."""
    built: Built | None = None
    validated: Validated | None = None
    published: Published | None = None


def run_night(run: Run, last_stage: str) -> Outcome:
    """The stages up to `last_stage`; those whose artifact is complete are skipped.

    Raises what the stages raise; nothing is published unless every stage before has succeeded.
    """
    run = run.with_config(pin_encoder(run.config, run.store))
    inputs = read_inputs(run)
    if last_stage == "publish":
        return publish_night(run, inputs)
    with ray_session(run.config.ray.address):
        return remaking_lost(run, inputs, lambda inputs: run_stages(run, inputs, last_stage))


def publish_night(run: Run, inputs: Inputs) -> Outcome:
    """All stages, as the only run on the store: the lease is held from the first stage until after the commit."""
    preflight_once(run.store, run.workspace)
    started = datetime.datetime.now(datetime.UTC)
    owner = f"process {os.getpid()} on {socket.gethostname()}, started {started:%F %T} UTC"
    with hold_lease(run.store, owner, wait=run.config.run.on_conflict == "wait") as lease:
        current = current_release(run.store, run.config.publish)
        if current.release:
            require_key(current.release, publisher_key(run.config.publish), "publish.signing_key", run.store.url)
        inputs = inputs.on_top_of(current)
        if reason := why_held(run, inputs):
            raise PublishConflict(f"{run.store.url}: {reason}")
        if unchanged := find_unchanged(run, inputs):
            return Outcome(published=unchanged)
        with ray_session(run.config.ray.address):
            held = replace(run, check=lease.check)
            outcome = remaking_lost(held, inputs, lambda inputs: run_and_publish(held, inputs))
        try:
            delete_work(run.workspace, outcome)
        except StoreUnavailable as error:  # the night has done its work all the same
            logger.warning("%s; what the night has made stays there until prune --workspace deletes it", error)
        return outcome


def run_and_publish(run: Run, inputs: Inputs) -> Outcome:
    outcome = run_stages(run, inputs, "build")
    assert outcome.prepared and outcome.encoded and outcome.built
    if published := find_published(run, inputs, outcome.prepared, outcome.built):
        return replace(outcome, published=published)
    outcome = validate_or_rebuild(run, inputs, outcome)
    assert outcome.prepared and outcome.encoded and outcome.built and outcome.validated
    published = publish(run, inputs, outcome.prepared, outcome.built, outcome.validated)
    rows = {"encode": outcome.encoded.num_encoded, "build": outcome.built.num_indexed}
    keep_rates(run.workspace, rows, run.progress.seconds)
    return replace(outcome, published=published)


def remaking_lost(run: Run, inputs: Inputs, act: Callable[[Inputs], Outcome]) -> Outcome:
    """What `act` returns. Where the workspace has lost a file of an artifact that is complete, it is done again, once.

    Raises StoreUnavailable where files are lost again.
    """
    try:
        return without_damaged(inputs, act)
    except ObjectNotFound as error:
        logger.warning("%s; what the workspace has lost is made again", error)
    forget_work(run, inputs)
    try:
        return without_damaged(inputs, act)
    except ObjectNotFound as error:
        raise StoreUnavailable(f"{error}, though it was made just now: find out what deletes it") from error


def without_damaged(inputs: Inputs, act: Callable[[Inputs], Outcome]) -> Outcome:
    """What `act` returns for the inputs, or for these without the shards of the base that it has found damaged."""
    try:
        return act(inputs)
    except BaseDamaged as error:
        logger.warning("%s; vectors that it has are made again", error)
        return without_damaged(inputs.without(error.shards), act)


def forget_work(run: Run, inputs: Inputs) -> None:
    """Deletes the markers of this night's artifacts. Vectors and graphs that are still there are found again."""
    prepared = prepared_artifact(run.workspace, inputs)
    prepared.forget()
    encoded_artifact(run.workspace, prepared.path).forget()
    for parent in (inputs.parent, None):
        built_artifact(run, prepared.path, parent).forget()


def run_stages(run: Run, inputs: Inputs, last_stage: str) -> Outcome:
    """The stages up to `last_stage`, which is before publish. Raises BaseDamaged, which `without_damaged` handles."""
    require_shared(run, inputs.source)
    prepared = prepare(run, inputs)
    outcome = Outcome(prepared, encode(run, inputs, prepared), inputs.source.converted)
    if last_stage == "encode":
        return outcome
    outcome = replace(outcome, built=build(run, inputs, prepared))
    return outcome if last_stage == "build" else validate_or_rebuild(run, inputs, outcome)


def validate_or_rebuild(run: Run, inputs: Inputs, outcome: Outcome) -> Outcome:
    """The outcome with `validated`. Where gates fail for shards with deltas, all are rebuilt and measured again."""
    assert outcome.prepared and outcome.built
    try:
        return replace(outcome, validated=validate(run, inputs, outcome.prepared, outcome.built))
    except GatesFailed as error:
        if not outcome.built.has_changes:
            raise
        logger.warning("validate: with deltas %s; building all shards whole", error)
    built = build(run, inputs.following(None), outcome.prepared)
    return replace(outcome, built=built, validated=validate(run, inputs, outcome.prepared, built))


def delete_work(workspace: Store, outcome: Outcome) -> None:
    """Deletes what the night has made and the release has now. The list of bad rows and the report stay."""
    prepared, built = outcome.prepared, outcome.built
    assert prepared and built
    folders = [prepared.path, built.path, *sorted({shard.graph for shard in built.shards if shard.graph})]
    blobs = sorted({workspace_key(blob) for shard in built.shards for _, blob in shard.entry.blobs()})
    delete_night(workspace, folders, blobs, keep=prepared.quarantine_key)


def preflight_once(store: Store, workspace: Store) -> None:
    """The preflight of the store, unless the workspace notes that this store, server and client have passed it."""
    name = fingerprint(store.address(), importlib.metadata.version("boto3"))
    key = f"preflight/{name}.json"
    if workspace.head(key) is None:
        preflight(store)
        workspace.put(key, json.dumps({"store": store.url}).encode())
