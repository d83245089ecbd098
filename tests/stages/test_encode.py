"""The three steps of a bucket, called as Ray calls them: what they encode, and what they write."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from flow.worlds import SYLLABLES
from support.tiny_encoder import DIM, write_tiny_encoder

import jobs.stages.encode
from indexing.catalogue.text import row_fingerprints
from indexing.encoder import EncoderSettings, encoder_digest, load_encoder, load_tokeniser
from indexing.errors import ConfigError, DataError
from indexing.id_keys import id_keys
from indexing.store import S3Settings, open_store
from jobs.config.schema import RayConfig
from jobs.inputs.encoder import EncoderInput
from jobs.stages.encode import encoder_pool, memory_needed
from jobs.stages.encode_bucket import BucketEncoder, EncodedBucket, EncodeSettings, tokenise_bucket, write_vectors
from jobs.workspace.buckets import NEW, VECTORS, bucket_key, read_bucket_file, write_bucket_file
from jobs.workspace.parquet import parquet_bytes
from jobs.workspace.records import Prepared
from jobs.workspace.vectors import VECTOR, vector_column, vectors_of

Encode = Callable[[dict[str, str]], EncodedBucket]
TEXTS = {f"item-{number}": f"{word} {SYLLABLES[number]}" for number, word in enumerate(SYLLABLES[:20])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("model"), [" ".join(SYLLABLES)])


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> EncodeSettings:
    return EncodeSettings(
        workspace=open_store(str(tmp_path / "workspace")),
        path="items/x",
        encoder=EncoderSettings(model=str(model), device="cpu", dtype="float32", max_tokens=64),
        encoder_digest=encoder_digest(model),
        s3=S3Settings(),
        num_threads=1,
    )


@pytest.fixture
def prepared() -> Prepared:
    """Two new buckets."""
    return Prepared(
        path="items/x",
        catalogue_fingerprint="",
        num_buckets=8,
        buckets=(0, 1),
        new_buckets=(0, 1),
        num_new=0,
        num_rows=0,
        num_items={},
        quarantined={},
        peak_memory_bytes=0,
    )


@pytest.fixture
def encode(settings: EncodeSettings, model: Path, monkeypatch: pytest.MonkeyPatch) -> Encode:
    """encode({id: text}) encodes one bucket; its counts."""
    monkeypatch.setattr("ray.get", lambda value: value)

    def encode_(texts: dict[str, str]) -> EncodedBucket:
        write_texts(settings, texts)
        tokens = tokenise_bucket(settings, load_tokeniser(model, settings.encoder), 5)  # type: ignore[arg-type]
        return write_vectors(settings, BucketEncoder(settings)(tokens))

    return encode_


def write_texts(settings: EncodeSettings, texts: dict[str, str]) -> None:
    ids, column = list(texts), pa.chunked_array([list(texts.values())])
    columns = {
        "collection": ["tracks"] * len(ids),
        "id_key": id_keys(ids),
        "item_id": ids,
        "fingerprint": row_fingerprints(column, "encoder"),
        "text": column,
    }
    rows = pa.table(columns).sort_by([("id_key", "ascending")])
    write_bucket_file(settings.workspace, settings.path, NEW, 5, rows)


def read_vectors(settings: EncodeSettings) -> dict[str, np.ndarray]:
    """item_id → vector; a repeated id fails."""
    table = read_bucket_file(settings.workspace, settings.path, VECTORS, 5)
    assert table["id_key"].to_pylist() == sorted(table["id_key"].to_pylist())
    return dict(zip(table["item_id"].to_pylist(), vectors_of(table), strict=True))


def test_a_bucket_has_the_encoders_own_vectors_as_float16(
    encode: Encode, settings: EncodeSettings, model: Path
) -> None:
    counts = encode(TEXTS)
    assert (counts.num_rows, counts.num_encoded, counts.num_truncated) == (20, 20, 0)
    found = read_vectors(settings)
    expected = load_encoder(model, settings.encoder).encode(list(TEXTS.values()))
    assert found["item-0"].dtype == np.float16 and len(found["item-0"]) == DIM
    for item_id, vector in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(found[item_id], vector, atol=1e-3)


def test_identical_texts_are_encoded_once(encode: Encode, settings: EncodeSettings) -> None:
    assert encode({f"item-{number}": "balark cerose" for number in range(9)} | {"other": "momint"}).num_encoded == 2
    found = read_vectors(settings)
    assert len(found) == 10
    assert all((found["item-0"] == found[f"item-{number}"]).all() for number in range(9))
    assert not (found["item-0"] == found["other"]).all()


def test_the_bytes_of_vectors_follow_from_their_rows(encode: Encode, settings: EncodeSettings) -> None:
    encode(TEXTS)
    key = bucket_key(settings.path, VECTORS, 5)
    before = settings.workspace.get(key)
    settings.workspace.delete(key)
    encode(dict(reversed(TEXTS.items())))
    assert settings.workspace.get(key) == before


def test_nothing_of_a_file_shows_that_its_tables_have_travelled(
    encode: Encode, settings: EncodeSettings, model: Path
) -> None:
    encode(TEXTS | {"again": TEXTS["item-3"]})
    rows = read_bucket_file(settings.workspace, settings.path, NEW, 5)
    vectors = load_encoder(model, settings.encoder).encode(rows["text"].to_pylist()).astype(np.float16)
    table = rows.drop_columns(["text"]).append_column(VECTOR, vector_column(vectors))
    assert settings.workspace.get(bucket_key(settings.path, VECTORS, 5)) == parquet_bytes(table)


def test_texts_that_were_cut_are_counted(encode: Encode) -> None:
    assert encode({"long": "balark " * 100, "short": "balark"}).num_truncated == 1


def test_a_worker_with_another_model_refuses_to_encode(settings: EncodeSettings) -> None:
    with pytest.raises(DataError, match=r"this worker has another .* than the driver .*install the same one"):
        BucketEncoder(replace(settings, encoder_digest="0" * 64))


@pytest.mark.parametrize(
    ("cluster", "settings_", "expected"),
    [
        ({"CPU": 8}, RayConfig(), (8, 8, 1, 0)),
        ({"CPU": 8}, RayConfig(cpus_per_actor=3), (2, 2, 3, 0)),
        ({"CPU": 8, "GPU": 2}, RayConfig(cpus_per_actor=2), (2, 2, 2, 1)),
        ({"CPU": 2, "GPU": 4}, RayConfig(), (2, 2, 1, 1)),
        ({"CPU": 8, "GPU": 2}, RayConfig(gpus_per_actor=0.5), (4, 4, 1, 0.5)),
        ({"CPU": 8, "GPU": 2}, RayConfig(gpus_per_actor=0), (8, 8, 1, 0)),
        ({"CPU": 8}, RayConfig(encode_actors=3), (3, 3, 1, 0)),
        ({"CPU": 8}, RayConfig(encode_actors=30, min_encode_actors=2), (2, 30, 1, 0)),
        ({"CPU": 8}, RayConfig(min_encode_actors=2), (2, 8, 1, 0)),
    ],
)
def test_as_many_encoders_as_the_cluster_can_hold(
    monkeypatch: pytest.MonkeyPatch,
    cluster: dict[str, float],
    settings_: RayConfig,
    expected: tuple[int, int, int, float],
) -> None:
    monkeypatch.setattr(jobs.stages.encode, "cluster_resources", lambda: cluster)
    pool = encoder_pool(settings_)
    assert (pool.min_actors, pool.max_actors, pool.num_cpus, pool.num_gpus) == expected


@pytest.mark.parametrize(
    ("cluster", "settings_", "expected"),
    [
        ({"CPU": 8, "GPU": 2}, RayConfig(), (1, None)),
        ({"CPU": 8}, RayConfig(encode_actors=3), (1, None)),
        ({"CPU": 8}, RayConfig(), (0, 2)),
        ({"CPU": 8, "GPU": 2}, RayConfig(cpus_per_actor=4), (0, 8)),
        ({}, RayConfig(address="auto", encode_actors=4, gpus_per_actor=1), (0, 4)),
    ],
)
def test_tasks_never_wait_for_a_cpu_that_an_encoder_holds(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float], settings_: RayConfig, expected: tuple[int, int | None]
) -> None:
    monkeypatch.setattr(jobs.stages.encode, "cluster_resources", lambda: cluster)
    pool = encoder_pool(settings_)
    assert (pool.task_cpus, pool.max_tasks) == expected


def test_encoders_that_reserve_memory_are_no_more_than_it_holds(
    monkeypatch: pytest.MonkeyPatch, prepared: Prepared, model: Path
) -> None:
    monkeypatch.setattr(jobs.stages.encode, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(jobs.stages.encode, "cluster_memory", lambda: 8_000_000_000)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    encoder = EncoderInput(model, (), "", "", EncoderSettings(model=str(model), dim=1_000, max_tokens=24))
    few, many = (memory_needed(encoder, replace(prepared, num_new=num)) for num in (10_000, 500_000))
    pool = encoder_pool(RayConfig(), few)
    assert (pool.max_actors, pool.actor_bytes, pool.task_bytes) == (7, few.encoder_bytes, few.task_bytes)
    assert encoder_pool(RayConfig(), many).max_actors == 1
    assert encoder_pool(RayConfig()).actor_bytes is None
    with pytest.raises(ConfigError, match=r"and it and a task 1\d\.\d GB .*, this machine has 8 and 0, and 8\.0 GB"):
        encoder_pool(RayConfig(), memory_needed(encoder, replace(prepared, num_new=1_000_000)))


@pytest.mark.parametrize("settings_", [RayConfig(cpus_per_actor=3), RayConfig(gpus_per_actor=1)])
def test_an_encoder_that_this_machine_can_never_hold_is_refused_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, settings_: RayConfig
) -> None:
    monkeypatch.setattr(jobs.stages.encode, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"an encoder needs \d CPUs and \d GPUs .*, this machine has 2 and 0"):
        encoder_pool(settings_)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # a cluster may yet grow
    assert encoder_pool(settings_).max_actors == 1


def test_vectors_are_unit_norm(encode: Encode, settings: EncodeSettings) -> None:
    encode(TEXTS)
    norms = np.linalg.norm(np.array(list(read_vectors(settings).values()), np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    assert VECTOR == "vector"
