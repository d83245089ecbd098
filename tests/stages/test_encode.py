"""The encoding actor, called as Ray calls it: what it encodes, what it takes from earlier nights, what it writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.worlds import SYLLABLES
from support.tiny_encoder import DIM, write_tiny_encoder

import jobs.stages.encode
from indexing.catalogue.text import row_fingerprints
from indexing.encoder import EncoderSettings, encoder_digest, load_encoder
from indexing.errors import ConfigError, DataError
from indexing.key_ranges import id_keys, key_range
from indexing.store import S3Settings, open_store
from jobs.config.schema import RayConfig
from jobs.inputs.rows import fingerprint_keys
from jobs.stages.encode import ChunkEncoder, EncodeSettings, actor_pool
from jobs.workspace.chunks import list_chunks, num_chunks, overlaps
from jobs.workspace.runs import run_key, write_run
from jobs.workspace.vectors import VECTOR, vectors_of

Encode = Callable[..., dict[str, int]]
TEXTS = {f"item-{number}": f"{word} {SYLLABLES[number]}" for number, word in enumerate(SYLLABLES[:20])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("model"), [" ".join(SYLLABLES)])


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> EncodeSettings:
    store = open_store(str(tmp_path / "workspace"))
    return EncodeSettings(
        workspace=store,
        items_path="items/x",
        num_parts=1,
        num_chunks=1,
        chunks_path="vectors/x",
        known_chunks=(),
        encoder=EncoderSettings(model=str(model), device="cpu", dtype="float32", max_tokens=64),
        encoder_digest=encoder_digest(model),
        s3=S3Settings(),
        num_threads=1,
    )


@pytest.fixture
def encode(settings: EncodeSettings) -> Encode:
    """encode({id: text}, num_chunks=1) is one night over all chunks, knowing what earlier ones left; sums of counts."""

    def encode_(texts: dict[str, str], num_chunks: int = 1) -> dict[str, int]:
        write_texts(settings, texts)
        night = replace(
            settings, num_chunks=num_chunks, known_chunks=list_chunks(settings.workspace, settings.chunks_path)
        )
        actor = ChunkEncoder(night)
        counts = [actor.encode_chunk(number) for number in range(num_chunks)]
        return {name: sum(count[name] for count in counts) for name in ("num_rows", "num_encoded", "num_truncated")}

    return encode_


def write_texts(settings: EncodeSettings, texts: dict[str, str]) -> None:
    ids, column = list(texts), pa.chunked_array([list(texts.values())])
    fingerprints = pa.chunked_array([row_fingerprints(column, "encoder")])
    columns = {
        "fingerprint_key": fingerprint_keys(fingerprints),
        "fingerprint": fingerprints,
        "item_id": ids,
        "id_key": id_keys(ids),
        "text": column,
    }
    table = pa.table(columns)
    write_run(settings.workspace, run_key(settings.items_path, "texts", 0), table, sort_by=table.column_names[:3])


def read_vectors(settings: EncodeSettings) -> dict[str, np.ndarray]:
    """item_id → vector, from all chunks; a repeated id fails."""
    found: dict[str, np.ndarray] = {}
    for key in list_chunks(settings.workspace, settings.chunks_path):
        with settings.workspace.open(key) as file:
            table = pq.read_table(pa.PythonFile(file, mode="r"))
        assert table["id_key"].to_pylist() == sorted(table["id_key"].to_pylist())
        for item_id, vector in zip(table["item_id"].to_pylist(), vectors_of(table), strict=True):
            assert item_id not in found
            found[item_id] = vector
    return found


def test_chunks_hold_the_encoders_own_vectors_as_float16(encode: Encode, settings: EncodeSettings, model: Path) -> None:
    assert encode(TEXTS) == {"num_rows": 20, "num_encoded": 20, "num_truncated": 0}
    found = read_vectors(settings)
    expected = load_encoder(model, settings.encoder).encode(list(TEXTS.values()))
    assert found["item-0"].dtype == np.float16 and len(found["item-0"]) == DIM
    for item_id, vector in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(found[item_id], vector, atol=1e-3)


def test_identical_texts_are_encoded_once(encode: Encode, settings: EncodeSettings) -> None:
    assert encode({f"item-{number}": "balark cerose" for number in range(9)} | {"other": "momint"})["num_encoded"] == 2
    found = read_vectors(settings)
    assert len(found) == 10
    assert all((found["item-0"] == found[f"item-{number}"]).all() for number in range(9))
    assert not (found["item-0"] == found["other"]).all()


def test_what_is_known_is_not_encoded_again(encode: Encode, settings: EncodeSettings) -> None:
    encode(TEXTS)
    before = list_chunks(settings.workspace, settings.chunks_path)
    assert encode(TEXTS) == {"num_rows": 20, "num_encoded": 0, "num_truncated": 0}
    assert list_chunks(settings.workspace, settings.chunks_path) == before


def test_a_changed_text_and_a_new_item_are_all_that_is_encoded(encode: Encode, settings: EncodeSettings) -> None:
    encode(TEXTS)
    before = read_vectors(settings)
    assert encode({**TEXTS, "new": "gustorm hawave"})["num_encoded"] == 1
    assert set(read_vectors(settings)) == {*before, "new"}


def test_a_new_item_with_a_known_text_takes_its_vector(encode: Encode, settings: EncodeSettings) -> None:
    encode(TEXTS)
    assert encode({**TEXTS, "copy": TEXTS["item-3"]})["num_encoded"] == 0
    found = read_vectors(settings)
    np.testing.assert_array_equal(found["copy"], found["item-3"])


@pytest.mark.parametrize(("first", "second"), [(1, 4), (4, 1), (8, 2)])
def test_a_catalogue_that_grows_or_shrinks_finds_its_vectors_in_other_chunks(
    encode: Encode, settings: EncodeSettings, first: int, second: int
) -> None:
    assert encode(TEXTS, first)["num_encoded"] == 20
    assert encode(TEXTS, second)["num_encoded"] == 0
    assert set(read_vectors(settings)) == set(TEXTS)


def test_the_bytes_of_chunks_follow_from_their_rows(encode: Encode, settings: EncodeSettings, tmp_path: Path) -> None:
    encode(TEXTS, 4)
    before = {key: settings.workspace.get(key) for key in list_chunks(settings.workspace, settings.chunks_path)}
    for key in before:
        settings.workspace.delete(key)
    encode(dict(reversed(TEXTS.items())), 4)
    assert {key: settings.workspace.get(key) for key in list_chunks(settings.workspace, settings.chunks_path)} == before


def test_texts_that_were_cut_are_counted(encode: Encode) -> None:
    assert encode({"long": "balark " * 100, "short": "balark"})["num_truncated"] == 1


def test_a_worker_with_another_model_refuses_to_encode(settings: EncodeSettings) -> None:
    with pytest.raises(DataError, match=r"this worker has another .* than the driver .*install the same one"):
        ChunkEncoder(replace(settings, encoder_digest="0" * 64))


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(0, 8), (500, 8), (32_768, 8), (65_536, 16), (136_568, 32), (10**9, 512)]
)
def test_chunks_are_a_power_of_two_within_bounds(num_rows: int, expected: int) -> None:
    assert num_chunks(num_rows) == expected


def test_only_chunks_of_the_range_are_read() -> None:
    name = f"3of8-{'0' * 32}.parquet"
    assert [number for number in range(8) if overlaps(name, key_range(number, 8))] == [3]
    assert [number for number in range(2) if overlaps(name, key_range(number, 2))] == [0]
    assert [number for number in range(16) if overlaps(name, key_range(number, 16))] == [6, 7]
    assert not overlaps("done.json", key_range(0, 1))
    assert not overlaps(f"x3of8-{'0' * 32}.parquet", key_range(0, 1))


@pytest.mark.parametrize(
    ("cluster", "settings_", "expected"),
    [
        ({"CPU": 8}, RayConfig(), (8, 1, 0)),
        ({"CPU": 8}, RayConfig(cpus_per_actor=3), (2, 3, 0)),
        ({"CPU": 8, "GPU": 2}, RayConfig(cpus_per_actor=2), (2, 2, 1)),
        ({"CPU": 2, "GPU": 4}, RayConfig(), (2, 1, 1)),
        ({"CPU": 8, "GPU": 2}, RayConfig(gpus_per_actor=0.5), (4, 1, 0.5)),
        ({"CPU": 8, "GPU": 2}, RayConfig(gpus_per_actor=0), (8, 1, 0)),
        ({"CPU": 8}, RayConfig(encode_actors=3), (3, 1, 0)),
    ],
)
def test_as_many_encoders_as_the_cluster_can_hold(
    monkeypatch: pytest.MonkeyPatch,
    cluster: dict[str, float],
    settings_: RayConfig,
    expected: tuple[int, int, float],
) -> None:
    monkeypatch.setattr(jobs.stages.encode, "cluster_resources", lambda: cluster)
    assert actor_pool(settings_) == expected


@pytest.mark.parametrize("settings_", [RayConfig(cpus_per_actor=3), RayConfig(gpus_per_actor=1)])
def test_an_encoder_that_this_machine_can_never_hold_is_refused_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, settings_: RayConfig
) -> None:
    monkeypatch.setattr(jobs.stages.encode, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"an encoder needs \d CPUs and \d GPUs .*, this machine has 2 and 0"):
        actor_pool(settings_)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # a cluster may yet grow
    assert actor_pool(settings_)[0] == 1


def test_vectors_are_unit_norm(encode: Encode, settings: EncodeSettings) -> None:
    encode(TEXTS)
    norms = np.linalg.norm(np.array(list(read_vectors(settings).values()), np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    assert VECTOR == "vector"
