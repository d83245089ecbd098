"""The configuration: defaults, overrides, and one clear line for everything that is wrong with it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from indexing.dense.params import IndexParams
from indexing.encoder import EncoderSettings
from indexing.errors import ConfigError
from jobs.config.load import load_config, to_yaml
from jobs.config.schema import Config, EncoderConfig
from jobs.workspace.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]
MINIMAL: dict[str, Any] = {
    "name": "demo",
    "store": "file://./store",
    "workspace": "file://./workspace",
    "catalogue": {"path": "catalogue", "collections": {"tracks": {"item_types": ["track"]}}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def write(folder: Path, content: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(path: Path, *overrides: str) -> Config:
    return load_config(str(path), overrides)


def test_what_is_left_out_has_its_default(path: Path) -> None:
    config = load(path)
    assert config.name == "demo"
    assert config.encoder == EncoderConfig()
    assert (config.index.M, config.index.ef_construction, config.index.recall_target) == (16, 200, 0.95)
    assert config.catalogue.max_quarantined == 0.01
    assert config.item_types() == {"track": "tracks"}
    assert config.index.params() == IndexParams(M=16, ef_construction=200, seed=1)


def test_overrides_are_laid_over_the_file(path: Path) -> None:
    config = load(path, "index.M=24", "encoder.device=cpu", "s3.endpoint=http://127.0.0.1:9000", "publish.always=true")
    assert (config.index.M, config.encoder.device, config.publish.always) == (24, "cpu", True)
    assert config.s3.endpoint == "http://127.0.0.1:9000"
    assert load(path, "catalogue.collections.shows.item_types=[show,episode]").item_types() == {
        "track": "tracks",
        "show": "shows",
        "episode": "shows",
    }


def test_an_encoder_can_be_named_in_one_word(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"encoder": "latest"})
    assert load(path).encoder == EncoderConfig(model="latest")
    assert load(path, "encoder=some/folder").encoder == EncoderConfig(model="some/folder")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("catalog.path=x", "unknown key catalog; did you mean catalogue?"),
        ("index.rows_per_shrad=5", "unknown key index.rows_per_shrad; did you mean rows_per_shard?"),
        ("index.m=5", "unknown key index.m; known here: rows_per_shard, M, ef_construction, seed, recall_target"),
        ("encoder.batch_token=5", "unknown key encoder.batch_token; did you mean batch_tokens?"),
        ("s3.endpoints=x", "unknown key s3.endpoints; did you mean endpoint?"),
        ("validation.max_row_chang=1", "unknown key validation.max_row_chang; did you mean max_row_change?"),
        (
            "catalogue.collections.tracks.item_type=[a]",
            "unknown key catalogue.collections.tracks.item_type; did you mean item_types?",
        ),
        ("name.x=5", "name: "),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_known_one(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")) as caught:
        load(path, override)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_in_the_file_is_named_too(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"retension": {}})
    with pytest.raises(ConfigError, match="unknown key retension"):
        load(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=' '", "name: expected a name, got ' '"),
        ("catalogue.path=null", "catalogue.path: expected a path, or else vectors.path, got None"),
        ("vectors.path=v.parquet", "catalogue.path: expected a path, or else vectors.path, got 'catalogue'"),
        ("catalogue.collections.tracks.item_types=[]", "catalogue.collections: expected item_types in each"),
        (
            "catalogue.collections.more.item_types=[track,show]",
            "catalogue.collections: expected each item type in one collection, got ['track']",
        ),
        ("catalogue.max_quarantined=1.5", "catalogue.max_quarantined: expected a share from 0 to 1, got 1.5"),
        ("catalogue.max_quarantined=-0.1", "catalogue.max_quarantined: expected a share from 0 to 1, got -0.1"),
        ("vectors.ids=ids.parquet", "vectors.ids: expected a Parquet file of ids with .npy, else nothing"),
        ("encoder.max_tokens=7", "encoder.max_tokens: expected at least 8, got 7"),
        ("encoder.batch_tokens=127", "encoder.batch_tokens: expected auto or at least encoder.max_tokens, got 127"),
        ("encoder.batch_tokens=many", "encoder.batch_tokens: expected auto or at least encoder.max_tokens, got 'many'"),
        ("encoder.batch_tokens=-1", "encoder.batch_tokens: expected auto or at least encoder.max_tokens, got -1"),
        ("encoder.dim=0", "encoder.dim: expected null or at least 1, got 0"),
        ("encoder.device=gpu", "encoder.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("encoder.dtype=float16", "encoder.dtype: expected one of auto, float32, bfloat16, got 'float16'"),
        ("index.rows_per_shard=0", "index.rows_per_shard: expected at least 1, got 0"),
        ("index.M=1", "index.M: expected 2 to 128, got 1"),
        ("index.M=129", "index.M: expected 2 to 128, got 129"),
        ("index.ef_construction=15", "index.ef_construction: expected at least index.M, got 15"),
        ("index.recall_target=0", "index.recall_target: expected above 0, at most 1, got 0.0"),
        ("index.recall_target=1.01", "index.recall_target: expected above 0, at most 1, got 1.01"),
        ("index.seed=-1", "index.seed: expected 0 or more, got -1"),
        ("validation.num_samples=1", "validation.num_samples: expected at least 2, got 1"),
        ("validation.min_self_match=95", "validation.min_self_match: expected a share from 0 to 1, got 95.0"),
        ("validation.min_shard_recall=-1", "validation.min_shard_recall: expected a share from 0 to 1, got -1.0"),
        ("validation.max_row_change=-1", "validation.max_row_change: expected 0 or more, got -1.0"),
        ("ray.cpus_per_actor=0", "ray.cpus_per_actor: expected at least 1, got 0"),
        ("ray.encode_actors=0", "ray.encode_actors: expected null or at least 1, got 0"),
        ("ray.gpus_per_actor=-1", "ray.gpus_per_actor: expected null or 0 or more, got -1.0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(path, override)
    assert "\n" not in str(caught.value)


def test_a_catalogue_needs_collections(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"catalogue": {"path": "catalogue"}})
    with pytest.raises(ConfigError, match=r"catalogue\.collections: expected at least one collection, got \{\}"):
        load(path)


def test_npy_needs_ids_and_parquet_takes_none(path: Path) -> None:
    load(path, "catalogue.path=null", "vectors.path=v.npy", "vectors.ids=ids.parquet")
    load(path, "catalogue.path=null", "vectors.path=folder")
    with pytest.raises(ConfigError, match=r"vectors\.ids: expected a Parquet file of ids with \.npy"):
        load(path, "catalogue.path=null", "vectors.path=v.npy")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("index.M=many", "index.M: Value 'many' of type 'str' could not be converted to Integer"),
        ("index.M=2.5", "index.M: Value '2.5' of type 'float' could not be converted to Integer"),
        ("index.M", "index.M: "),
        ("index=5", "Merge error: int is not a subclass of IndexConfig. value: 5"),
        ("catalogue.collections=[tracks]", "Cannot merge incompatible container types"),
        ("catalogue.collections.tracks.item_types=track", "catalogue.collections.tracks.item_types: "),
        ("encoder.batch_tokens=[1]", "encoder.batch_tokens: "),
        ("index.M=[", ""),
        ("name=${nothing}", ""),
    ],
)
def test_a_value_of_a_wrong_type_is_named_in_one_line(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")) as caught:
        load(path, override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "not YAML"),
        ("name: demo\n\tstore: x", "not YAML"),
        ("- name\n- store", "Cannot merge incompatible container types"),
        ("just words", "unknown key just words"),
        ("42", "Invalid loaded object type: int"),
        ("", "expected a value for name"),
        ("name: demo", "expected a value for store"),
        ("name: a\nname: b", "found duplicate key name"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"configuration {path} does not exist; configs/ has examples"):
            load(path)


def test_batch_tokens_are_auto_or_a_number(path: Path) -> None:
    assert load(path).encoder.settings().batch_tokens is None
    assert load(path, "encoder.batch_tokens=auto").encoder.settings().batch_tokens is None
    config = load(path, "encoder.batch_tokens=4096", "encoder.max_tokens=64", "encoder.dim=256")
    expected = EncoderSettings(model=config.encoder.model, batch_tokens=4096, max_tokens=64, dim=256)
    assert config.encoder.settings() == expected


def test_the_printed_configuration_loads_as_the_same(path: Path, tmp_path: Path) -> None:
    config = load(path, "index.M=24", "encoder.batch_tokens=512", "encoder.dim=64", "catalogue.text.track='{title}: x'")
    (tmp_path / "again").mkdir()
    assert load(write(tmp_path / "again", to_yaml(config))) == config


@pytest.mark.parametrize("name", ["demo", "local", "nightly"])
def test_the_configurations_in_the_repository_load(name: str) -> None:
    config = load(ROOT / "configs" / f"{name}.yaml")
    assert config.name == name
    assert config.encoder.settings().max_tokens == 128


def test_fingerprints_follow_content_alone(path: Path) -> None:
    config = load(path)
    assert fingerprint(config.index, {"a": 1, "b": [2, "ü"]}) == fingerprint(config.index, {"b": [2, "ü"], "a": 1})
    assert len({fingerprint(1, 2), fingerprint([1, 2]), fingerprint(12), fingerprint("1", 2), fingerprint(2, 1)}) == 5
    assert fingerprint(load(path, "index.M=17").index) != fingerprint(config.index)
    assert fingerprint("So What", 1, None) == "3eb598b50f0df967682ecff5bfd8eb30"
    with pytest.raises(TypeError, match="no fingerprint for set"):
        fingerprint({1})
