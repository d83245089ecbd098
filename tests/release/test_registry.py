"""Accepted encoders: numbered, never overwritten, and `latest` is the newest."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from training.worlds import tiny_model

from indexing.encoder import encoder_digest, resolve_model
from indexing.errors import ConfigError, DamagedError, PublishConflict
from indexing.release.registry import (
    AcceptedEncoder,
    accept,
    digest_of_url,
    encoder_numbers,
    encoder_url,
    entry_key,
    files_prefix,
    newest_encoder,
    read_accepted,
)
from indexing.store import open_store
from jobs.config.load import load_config
from jobs.config.schema import Config
from jobs.inputs.encoder import pin_encoder, read_encoder

ENTRY = AcceptedEncoder(
    format_version=1,
    number=0,
    parent=None,
    digest="",
    base_digest="b" * 64,
    interactions_fingerprint="i",
    catalogue_fingerprint="c",
    config_fingerprint="f",
    created_at="",
    writer_id="",
    metrics={"nDCG@10": {"mean": 0.1, "low": None}},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def config_of(url: str, folder: Path) -> Config:
    path = folder / "config.yaml"
    collections = {"tracks": {"item_types": ["track"]}}
    values = {"name": "x", "store": url, "workspace": f"{folder}/workspace", "encoder": {"model": "latest"}}
    path.write_text(json.dumps({**values, "catalogue": {"path": "x.parquet", "collections": collections}}))
    return load_config(str(path))


def test_an_accepted_encoder_is_the_same_files_under_the_next_number(
    store_url: str, model: Path, tmp_path: Path
) -> None:
    store = open_store(store_url)
    first = accept(store, model, ENTRY)
    second = accept(store, model, replace(ENTRY, parent=1))
    assert (first.number, second.number, encoder_numbers(store)) == (1, 2, [1, 2])
    assert newest_encoder(store) == second
    assert first.digest == encoder_digest(model)
    assert encoder_digest(resolve_model(encoder_url(store, first), cache_dir=tmp_path)) == first.digest


def test_of_two_trained_from_one_parent_the_second_is_refused(store_url: str, model: Path) -> None:
    store = open_store(store_url)
    first = accept(store, model, ENTRY)
    with pytest.raises(PublishConflict, match="another came in between: train again"):
        accept(store, model, ENTRY)
    assert newest_encoder(store) == first


def test_latest_is_the_newest_accepted_one(store_url: str, model: Path, tmp_path: Path) -> None:
    config = config_of(store_url, tmp_path)
    entry = accept(open_store(store_url), model, ENTRY)
    store = open_store(store_url)
    pinned = pin_encoder(config, store)
    assert encoder_digest(resolve_model(pinned.encoder.model, cache_dir=tmp_path / "cache")) == entry.digest
    assert pin_encoder(pinned, store) == pinned


@pytest.mark.parametrize("damage", ["replaced", "missing"])
def test_an_accepted_encoder_whose_files_are_others_is_refused(model: Path, tmp_path: Path, damage: str) -> None:
    """Even with write access to the store, nobody can make a night use other weights under the accepted digest."""
    store = open_store(f"file://{tmp_path}/store")
    entry = accept(store, model, ENTRY)
    config = pin_encoder(config_of(store.url, tmp_path), store)
    found = read_encoder(config)
    assert found is not None and found.digest == entry.digest
    key = f"{files_prefix(entry.digest)}/tokenizer_config.json"
    if damage == "missing":
        store.delete(key)
    else:
        store.put(key, store.get(key) + b" ")
    with pytest.raises(DamagedError, match="to have the digest in its name"):
        read_encoder(config)


def test_only_the_address_of_an_accepted_encoder_names_a_digest(model: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    entry = accept(store, model, ENTRY)
    assert digest_of_url(encoder_url(store, entry)) == entry.digest
    for other in ("latest", "org/model", f"s3://bucket/{entry.digest}", "/encoders/files/abc"):
        assert digest_of_url(other) is None


def test_latest_without_any_accepted_encoder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no accepted encoder: run train first, or name a model"):
        pin_encoder(config_of(f"file://{tmp_path}/store", tmp_path), open_store(f"file://{tmp_path}/store"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-5], "expected JSON"),
        (lambda data: data.replace(b'"number":1', b'"number":2'), "expected encoder 1 and a digest, got 2"),
        (lambda data: data.replace(b'"digest":"', b'"digest":"../'), "expected encoder 1 and a digest"),
        (lambda data: data.replace(b'"metrics"', b'"matrix"'), "unknown field 'matrix'"),
    ],
)
def test_an_altered_entry_is_refused(store_url: str, model: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    store = open_store(store_url)
    accept(store, model, ENTRY)
    store.put(entry_key(1), change(store.get(entry_key(1))))
    with pytest.raises(DamagedError, match=message):
        read_accepted(store, 1)
