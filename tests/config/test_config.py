"""The configuration: defaults, overrides, and one clear line for everything that is wrong with it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from indexing.dense.params import IndexParams
from indexing.encoder import EncoderSettings
from indexing.errors import ConfigError
from indexing.store import open_store
from indexing.store.local import LocalStore
from jobs.config.fields import fields_of, is_section, split
from jobs.config.load import load_config, to_yaml
from jobs.config.reference import DOCS_PATH, SCHEMA_PATH, descriptions, schema_text, sections, with_keys
from jobs.config.schema import Config, EncoderConfig
from jobs.stages.publish import config_fingerprint
from jobs.workspace.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "configs").glob("**/*.yaml"))
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
    assert (config.index.M, config.index.ef_construction, config.index.recall_target) == (16, 128, 0.95)
    assert config.catalogue.max_quarantined == 0.01
    assert config.item_types() == {"track": "tracks"}
    assert config.index.params() == IndexParams(M=16, ef_construction=128, seed=1, builder="faiss")


@pytest.mark.parametrize(
    ("share", "num_rows", "expected"),
    [(0.01, 1000, 10), (0.01, 99, 5), (0, 99, 0), (0, 1000, 0), (1, 99, 99), (1, 3, 5), (0.5, 40, 20)],
)
def test_of_few_rows_five_may_be_bad_or_the_share_where_that_is_more(
    path: Path, share: float, num_rows: int, expected: int
) -> None:
    assert load(path, f"catalogue.max_quarantined={share}").catalogue.max_bad_rows(num_rows) == expected


def test_overrides_replace_values_in_the_file(path: Path) -> None:
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
        ("index.m=5", "unknown key index.m; did you mean M?"),
        ("encoder.batch_token=5", "unknown key encoder.batch_token; did you mean batch_tokens?"),
        ("s3.endpoints=x", "unknown key s3.endpoints; did you mean endpoint?"),
        ("validation.max_row_chang=1", "unknown key validation.max_row_chang; did you mean max_row_change?"),
        (
            "catalogue.collections.tracks.item_type=[a]",
            "unknown key catalogue.collections.tracks.item_type; did you mean item_types?",
        ),
        ("name.x=5", "name: expected a name, got {'x': 5}"),
        ("Encoder.model=x", "unknown key Encoder; did you mean encoder?"),
        ("training.negatives.per_querry=5", "unknown key training.negatives.per_querry; did you mean per_query?"),
        ("training.shares.click=1", "unknown key training.shares.click; did you mean clicks?"),
        ("evaluation.x=1", "unknown key evaluation.x; known here: interactions, metric, max_loss, depth, bm25, seed"),
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
        ("catalogue.path=null", "catalogue.path: expected a path, or else vectors.path, got null"),
        ("vectors.path=v.parquet", "catalogue.path: expected a path, or else vectors.path, got '/"),
        (
            "catalogue.collections.tracks.item_types=[]",
            "catalogue.collections.tracks.item_types: expected a non-empty list of texts, got []",
        ),
        (
            "catalogue.collections.more.item_types=[track,show]",
            "catalogue.collections: expected each item type in one collection, got ['track']",
        ),
        ("catalogue.columns.titel=name", "unknown key catalogue.columns.titel; did you mean title?"),
        (
            "catalogue.columns.title=[name]",
            "catalogue.columns.title: expected text or a mapping of keys (from or split)",
        ),
        (
            "catalogue.columns.creators={split: ;}",
            "catalogue.columns.creators: expected the name of a column as `from`",
        ),
        (
            "catalogue.columns.title={from: name, split: ;}",
            "catalogue.columns.title: expected a separator as `split`, for creators or genres alone",
        ),
        ("catalogue.max_quarantined=1.5", "catalogue.max_quarantined: expected a share from 0 to 1, got 1.5"),
        ("catalogue.max_quarantined=-0.1", "catalogue.max_quarantined: expected a share from 0 to 1, got -0.1"),
        ("vectors.ids=ids.parquet", "vectors.ids: expected a Parquet file of ids with .npy, else nothing"),
        ("encoder.max_tokens=7", "encoder.max_tokens: expected an integer of at least 8, got 7"),
        ("encoder.batch_tokens=127", "encoder.batch_tokens: expected auto or at least encoder.max_tokens, got 127"),
        ("encoder.batch_tokens=many", "encoder.batch_tokens: expected auto or an integer of at least 8, got 'many'"),
        ("encoder.batch_tokens=-1", "encoder.batch_tokens: expected auto or an integer of at least 8, got -1"),
        ("encoder.dim=0", "encoder.dim: expected null or an integer of at least 1, got 0"),
        ("encoder.device=gpu", "encoder.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("encoder.dtype=float16", "encoder.dtype: expected auto, float32 or bfloat16, got 'float16'"),
        ("index.rows_per_shard=0", "index.rows_per_shard: expected an integer of at least 1, got 0"),
        ("index.M=1", "index.M: expected an integer from 2 to 128, got 1"),
        ("index.M=129", "index.M: expected an integer from 2 to 128, got 129"),
        ("index.ef_construction=15", "index.ef_construction: expected at least index.M, got 15"),
        ("index.recall_target=0", "index.recall_target: expected a number above 0 and at most 1, got 0"),
        ("index.recall_target=1.01", "index.recall_target: expected a number above 0 and at most 1, got 1.01"),
        ("index.seed=-1", "index.seed: expected an integer of at least 0, got -1"),
        ("validation.num_samples=1", "validation.num_samples: expected an integer of at least 2, got 1"),
        ("validation.min_self_match=95", "validation.min_self_match: expected a share from 0 to 1, got 95"),
        ("validation.min_shard_recall=-1", "validation.min_shard_recall: expected a share from 0 to 1, got -1"),
        ("validation.max_row_change=-1", "validation.max_row_change: expected a number of at least 0, got -1"),
        ("ray.cpus_per_actor=0", "ray.cpus_per_actor: expected an integer of at least 1, got 0"),
        ("ray.encode_actors=0", "ray.encode_actors: expected null or an integer of at least 1, got 0"),
        ("ray.min_encode_actors=0", "ray.min_encode_actors: expected null or an integer of at least 1, got 0"),
        ("ray.gpus_per_actor=-1", "ray.gpus_per_actor: expected null or a number of at least 0, got -1"),
        ("validation.max_row_change=.nan", "validation.max_row_change: expected a number of at least 0, got nan"),
        ("validation.max_drift=2.1", "validation.max_drift: expected null or a number from 0 to 2, got 2.1"),
        ("validation.on_drift=stop", "validation.on_drift: expected fail or warn, got 'stop'"),
        ("validation.min_overlap=0.5", "validation.min_overlap: expected validation.queries and an encoder with it"),
        ("publish.verify=none", "publish.verify: expected checksum or download, got 'none'"),
        ("run.on_conflict=5", "run.on_conflict: expected fail or wait, got 5"),
        ("retention.keep_last=0", "retention.keep_last: expected an integer of at least 1, got 0"),
        ("retention.min_age=1w", "retention.min_age: expected a number with s, m, h or d, such as 24h, got '1w'"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(path, override)
    assert "\n" not in str(caught.value)


def test_no_more_encoders_begin_than_may_run(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ray\.min_encode_actors: expected at most ray\.encode_actors, got 3"):
        load(path, "ray.encode_actors=2", "ray.min_encode_actors=3")
    assert load(path, "ray.min_encode_actors=3").ray.encode_actors is None


def test_a_catalogue_needs_collections(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"catalogue": {"path": "catalogue"}})
    with pytest.raises(ConfigError, match=r"expected a value for catalogue\.collections, got none"):
        load(path)
    with pytest.raises(ConfigError, match=r"catalogue\.collections: expected a non-empty mapping of names to sections"):
        load(write(tmp_path, MINIMAL | {"catalogue": {"path": "catalogue", "collections": {}}}))


def test_npy_needs_ids_and_parquet_takes_none(path: Path) -> None:
    load(path, "catalogue.path=null", "vectors.path=v.npy", "vectors.ids=ids.parquet")
    load(path, "catalogue.path=null", "vectors.path=folder")
    with pytest.raises(ConfigError, match=r"vectors\.ids: expected a Parquet file of ids with \.npy"):
        load(path, "catalogue.path=null", "vectors.path=v.npy")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("index.M=many", "index.M: expected an integer from 2 to 128, got 'many'"),
        ("index.M=2.5", "index.M: expected an integer from 2 to 128, got 2.5"),
        ("index.M=true", "index.M: expected an integer from 2 to 128, got true"),
        ("index.M=", "index.M: expected an integer from 2 to 128, got null"),
        ("index.M", "index.M: expected key=value on the command line, got no value"),
        ("index=5", "index: expected a section with keys such as rows_per_shard, M, ef_construction, got 5"),
        ("catalogue.collections=[tracks]", "catalogue.collections: expected a non-empty mapping of names to sections"),
        (
            "catalogue.collections.tracks=5",
            "catalogue.collections.tracks: expected a section with keys such as item_types",
        ),
        (
            "catalogue.collections.tracks.item_types=track",
            "catalogue.collections.tracks.item_types: expected a non-empty",
        ),
        (
            "catalogue.collections.tracks.item_types=[[1]]",
            "catalogue.collections.tracks.item_types[0]: expected text, got",
        ),
        ("catalogue.text=x", "catalogue.text: expected a mapping of names to texts, got 'x'"),
        ("encoder.batch_tokens=[1]", "encoder.batch_tokens: expected auto or an integer of at least 8, got [1]"),
        ("encoder=null", "encoder: expected a section with keys such as model, device, dtype, got null"),
        ("publish.always=perhaps", "publish.always: expected true or false, got 'perhaps'"),
        ("index.M=[", "index.M: expected a YAML value, got '['"),
        ("index.M=???", "expected a value for index.M, got none"),
        (
            "name=${nothing}",
            "name: expected ${KEY} of a key in this configuration or ${oc.env:VARIABLE}, got '${nothing}'",
        ),
        ("name=${no.such:x}", "name: expected ${KEY} of a key in this configuration"),
        ("name=${", "name: expected a YAML value, got '${'"),
        ("name=${name}", "name: expected ${KEY} of a key in this configuration"),
        (
            "name=${oc.env:NO_SUCH}",
            "name: environment variable NO_SUCH is not set; set it, or write ${oc.env:NO_SUCH,DEFAULT}",
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_named_in_one_line(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")) as caught:
        load(path, override)
    assert "\n" not in str(caught.value)
    assert not re.search("Input should|convert|Merge error|Interpolation|full_key|errors.pydantic", str(caught.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "not YAML: line 2, column 1: did not find expected node content"),
        ("name: demo\n\tstore: x", "not YAML: line 2, column 1: found a tab character that violates indentation"),
        ("- name\n- store", "expected keys and their values, got a list"),
        ("catalogue: {text: {a.b: '${x}'}}", "catalogue.text.a.b: expected ${KEY} of a key in this configuration"),
        ("catalogue: {text: {true: x}}", "catalogue.text: expected names that are text, got"),
        ("just words", "unknown key just words"),
        ("1: 2", "unknown key 1; known here: name, store, workspace"),
        ("name: ${", "name: expected a complete interpolation such as ${KEY}; a literal ${ is written \\${"),
        ("~: 2", "expected keys that are text"),
        ("42", "expected keys and their values, got a single value"),
        ("", "expected a value for name"),
        ("name: demo", "expected a value for store"),
        ("name: a\nname: b", "not YAML: line 2, column 1: found duplicate key name"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_configuration_in_the_repository_loads(path: Path) -> None:
    config = load(path)
    assert config.item_types() and config.encoder.settings().max_tokens == 128


def test_the_examples_keep_their_files_in_the_repository() -> None:
    demo, train = load(ROOT / "configs/demo.yaml"), load(ROOT / "configs/train.yaml")
    assert demo.store == f"file://{ROOT}/build/demo/store"
    assert Path(str(demo.catalogue.path)).is_dir()
    assert train.store == load(ROOT / "configs/local.yaml").store
    assert train.training.interactions == f"{ROOT}/data/interactions/train.parquet"


def test_a_value_can_name_another_key_or_a_variable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINKS", "24")
    config = load(
        path, "index.M=${oc.env:LINKS}", "index.ef_construction=${index.rows_per_shard}", "workspace=${store}/w"
    )
    assert (config.index.M, config.index.ef_construction) == (24, 250_000)
    assert config.workspace == f"{config.store}/w"


def test_a_mapping_is_merged_with_its_default(path: Path) -> None:
    assert load(path, "catalogue.text.track='{title}'").catalogue.text.keys() == {"default", "track"}
    assert load(path, "training.shares={clicks: 1}").training.shares["title_creator"] == 0.1


def test_paths_in_a_file_are_relative_to_it_and_overrides_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    catalogue = {"path": "../data", "collections": {"tracks": {"item_types": ["track"]}}}
    sections: dict[str, Any] = {
        "store": "file://../store",
        "workspace": "workspace",
        "catalogue": catalogue,
        "encoder": "model",
        "validation": {"queries": "./q.parquet"},
        "publish": {"signing_key": "/keys/a.pem", "trusted_keys": ["old.pem", "/keys/b.pem"]},
        "training": {"interactions": "s3://logs/a"},
        "evaluation": {"interactions": "${oc.env:LOGS,held-back}"},
    }
    path = write(tmp_path / "configs", MINIMAL | sections)
    config = load(path)
    assert config.store == f"file://{tmp_path}/store"
    assert config.workspace == f"{tmp_path}/configs/workspace"
    assert config.catalogue.path == f"{tmp_path}/data"
    assert config.encoder.model == f"{tmp_path}/configs/model"
    assert config.validation.queries == f"{tmp_path}/configs/q.parquet"
    assert config.publish.signing_key == "/keys/a.pem"
    assert config.publish.trusted_keys == [f"{tmp_path}/configs/old.pem", "/keys/b.pem"]
    assert config.training.interactions == "s3://logs/a"
    assert config.evaluation.interactions == f"{tmp_path}/configs/held-back"
    assert load(Path("../configs/config.yaml")) == config

    moved = load(path, "store=file://./s", "catalogue.path=null", "vectors={path: v.npy, ids: ../ids.parquet}")
    assert moved.store == f"file://{tmp_path}/elsewhere/s"
    assert (moved.vectors.path, moved.vectors.ids) == (f"{tmp_path}/elsewhere/v.npy", f"{tmp_path}/ids.parquet")
    assert load(path, "encoder=../configs/model").encoder == config.encoder
    assert LocalStore(tmp_path / "store").url == open_store(config.store).url


@pytest.mark.parametrize(
    "model",
    ["latest", "org/model", "package://p/model", "s3://bucket/model", "file:///srv/model", "/srv/model", "~/model"],
)
def test_a_name_of_an_encoder_or_its_absolute_place_stays_as_it_is(path: Path, model: str) -> None:
    assert load(path, f"encoder={model}").encoder.model == model


@pytest.mark.parametrize("url", ["gs://bucket/x", "file://store", "'  '"])
def test_a_store_of_no_known_kind_is_left_for_the_store_to_name(path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected s3://bucket/prefix, file:///folder"):
        open_store(load(path, f"store={url}").store)


def test_the_written_schema_and_key_tables_are_those_of_the_classes() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text(), "make docs-config"
    page = DOCS_PATH.read_text(encoding="utf-8")
    assert page == with_keys(page), "make docs-config"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_configuration_in_the_repository_is_of_the_schema_that_its_first_line_names(path: Path) -> None:
    marked = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", path.read_text().splitlines()[0])
    assert marked and (path.parent / marked[1]).resolve() == SCHEMA_PATH
    Draft202012Validator(json.loads(schema_text())).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"index": {"M": 129}},
        {"index": {"m": 16}},
        {"index": {"recall_target": 0}},
        {"encoder": {"dtype": "float16"}},
        {"encoder": {"device": "gpu"}},
        {"training": {"shares": {"click": 1}}},
        {"retention": {"min_age": "1w"}},
        {"publish": 5},
    ],
)
def test_the_schema_refuses_what_loading_refuses(tmp_path: Path, wrong: dict[str, Any]) -> None:
    check = Draft202012Validator(json.loads(schema_text()))
    assert check.is_valid(MINIMAL) and check.is_valid(MINIMAL | {"encoder": "latest"})
    assert not check.is_valid(MINIMAL | wrong)
    with pytest.raises(ConfigError):
        load(write(tmp_path, MINIMAL | wrong))


def test_every_key_says_what_it_means() -> None:
    missing = [
        f"{section}.{name}"
        for section, kind in sections()
        for name, field in fields_of(kind).items()
        if not is_section(split(field)[0]) and name not in descriptions(kind)
    ]
    assert missing == []


def test_the_fingerprint_of_a_configuration_is_that_of_earlier_versions() -> None:
    """Otherwise an upgrade would publish, and train, everything again."""
    config = load(ROOT / "configs/demo.yaml")
    assert config_fingerprint(config, None) == "07620805fdbf25bcde80e456f3048989"
    assert fingerprint(config.training, config.evaluation) == "33de0d51f6401cee6f4b408beba01ea8"


def test_fingerprints_follow_content_alone(path: Path) -> None:
    config = load(path)
    assert fingerprint(config.index, {"a": 1, "b": [2, "ü"]}) == fingerprint(config.index, {"b": [2, "ü"], "a": 1})
    assert len({fingerprint(1, 2), fingerprint([1, 2]), fingerprint(12), fingerprint("1", 2), fingerprint(2, 1)}) == 5
    assert fingerprint(load(path, "index.M=17").index) != fingerprint(config.index)
    assert fingerprint("So What", 1, None) == "3eb598b50f0df967682ecff5bfd8eb30"
    with pytest.raises(TypeError, match="no fingerprint for set"):
        fingerprint({1})
