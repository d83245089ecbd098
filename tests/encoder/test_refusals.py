"""A folder that is not fully understood is refused, naming the setting; nothing is guessed, none of its code is run."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder.tiny_models import TEXTS, write_transformer
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from indexing.encoder import EncoderSettings, encoder_files
from indexing.encoder.encoder import Encoder
from indexing.errors import ConfigError

Make = Callable[..., SentenceTransformer]
Load = Callable[..., Encoder]


def refused(words: str) -> Any:
    return pytest.raises(ConfigError, match=re.compile(words, re.DOTALL))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@pytest.fixture
def folder(make_model: Make, tmp_path: Path) -> Path:
    make_model("mean", [Dense(32, 24)])
    return tmp_path / "model"


@pytest.mark.case(21)
@pytest.mark.parametrize(
    "name,words",
    [
        ("model.safetensors", "weights as model.safetensors .* got none"),
        ("tokenizer.json", "expected a tokenizer"),
        ("config.json", r"model/config\.json, but it is missing"),
        ("1_Pooling/config.json", r"1_Pooling/config\.json, but it is missing"),
        ("2_Dense/config.json", r"2_Dense/config\.json, but it is missing"),
        ("2_Dense/model.safetensors", "weights as model.safetensors in .*2_Dense, got none"),
    ],
)
def test_a_missing_file_is_named(load: Load, folder: Path, name: str, words: str) -> None:
    (folder / name).unlink()
    with refused(words):
        load()


def test_a_missing_folder_and_a_file_in_its_place_are_named(load: Load, folder: Path) -> None:
    with refused("nowhere, which is missing"):
        load(folder / "nowhere")
    with refused("modules.json, which is a file"):
        load(folder / "modules.json")


@pytest.mark.case(21)
@pytest.mark.parametrize("where", ["", "2_Dense"])
def test_pickled_weights_are_never_opened(load: Load, folder: Path, tmp_path: Path, where: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    (folder / where / "model.safetensors").unlink()
    (folder / where / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with refused("only pytorch_model.bin, a pickle"):
        load()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.case(21)
@pytest.mark.parametrize(
    "position,kind,words",
    [
        (0, "StaticEmbedding", "module 0 to be Transformer, got StaticEmbedding"),
        (1, "Normalize", "module 1 to be Pooling, got Normalize"),
        (2, "LSTM", "module 2 to be Dense or Normalize, got LSTM"),
    ],
)
def test_an_unknown_module_is_named(load: Load, folder: Path, position: int, kind: str, words: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[position]["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(modules))
    with refused(words):
        load()


@pytest.mark.case(21)
def test_a_router_of_other_routes_is_named(load: Load, folder: Path) -> None:
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with refused(r"router_config\.json, but it is missing"):
        load()
    (folder / "router_config.json").write_text(json.dumps({"types": {}, "structure": {"text": [], "image": []}}))
    with refused("a Router for query and document only, got .'image', 'text'"):
        load()


@pytest.mark.case(21)
def test_a_module_outside_the_folder_is_refused(load: Load, folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with refused(r"path inside the model .* got '\.\./elsewhere'"):
        load()


@pytest.mark.case(21)
@pytest.mark.parametrize(
    "name,changes,words",
    [
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "best"]}, "pooling modes among cls, max, .* got best"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "2_Dense: expected 64 inputs, got 32"),
        ("2_Dense/config.json", {"activation_function": "evil.module.Run"}, "activation from torch.nn, got evil"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Hardtanh"}, "got Hardtanh"),
        ("2_Dense/config.json", {"use_residual": True}, "expected use_residual False, got True"),
        ("2_Dense/config.json", {"in_features": 16}, "expected 32 inputs, got 16"),
        ("2_Dense/config.json", {"out_features": 25}, "2_Dense/model.safetensors: expected the weights"),
        ("config.json", {"model_type": "unheard-of"}, "architecture that transformers knows .* type `unheard-of`"),
        ("config.json", {"model_type": "vit"}, "expected .* in .*model"),
        ("config.json", {"auto_map": {"AutoConfig": "x.Y"}, "model_type": "mine"}, "architecture .* knows"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "got query_expansion"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "got fill-mask"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "chat template"),
        ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}}, "got num_hidden_layers"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "got model_type 'SparseEncoder'"),
    ],
)
def test_what_would_change_the_vectors_is_named(
    load: Load, folder: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    edit(folder / name, **changes)
    with refused(words):
        load()


@pytest.mark.case(21)
def test_broken_json_and_broken_weights_are_named(load: Load, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    with refused("bert text encoder in .*model, got"):
        load()
    (folder / "modules.json").write_text("{")
    with refused(r"expected JSON in .*modules\.json"):
        load()


@pytest.mark.case(21)
def test_no_weight_is_ever_random(load: Load, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    key = "encoder.layer.1.output.dense.weight"
    for changed, words in (
        ({name: value for name, value in weights.items() if name != key}, f"missing: {key}"),
        (weights | {"encoder.layer.9.output.dense.weight": weights[key]}, r"unexpected: encoder\.layer\.9"),
        (weights | {key: torch.zeros(3, 3)}, f"of another shape: {key}"),
    ):
        save_file({name: value.clone() for name, value in changed.items()}, folder / "model.safetensors")
        with refused(words):
            load()


def test_a_pooler_more_or_less_changes_nothing(load: Load, folder: Path) -> None:
    before = load().encode(TEXTS)
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("pooler.") for name in weights)
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(kept | {"embeddings.position_ids": torch.arange(80)[None]}, folder / "model.safetensors")
    assert (load().encode(TEXTS) == before).all()


def test_more_dimensions_than_the_model_has_are_refused(load: Load, folder: Path) -> None:
    assert load(dim=24).dim == 24
    with refused(r"encoder\.dim: expected at most 24, the model's own, got 25"):
        load(dim=25)


def test_a_plain_folder_with_a_chat_template_is_refused(load: Load, tmp_path: Path) -> None:
    plain = write_transformer(tmp_path / "plain", "llama")
    edit(plain / "tokenizer_config.json", chat_template="{{ messages }}")
    with refused("chat template"):
        load(plain)


def test_sharded_weights_are_read_and_listed(load: Load, folder: Path) -> None:
    before = load().encode(TEXTS)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, keys in shards.items():
        save_file({key: weights[key] for key in keys}, folder / shard, metadata={"format": "pt"})
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    edit(folder / "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=weight_map)
    assert (load().encode(TEXTS) == before).all()
    assert {*shards, "model.safetensors.index.json"} < set(encoder_files(folder))


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"device": "tpu"}, r"encoder\.device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"dtype": "int8"}, r"encoder\.dtype: expected one of auto, .* got 'int8'"),
        ({"max_tokens": 2}, r"encoder\.max_tokens: expected at least 3, got 2"),
        ({"batch_tokens": 0}, r"encoder\.batch_tokens: expected at least 1, got 0"),
        ({"dim": 0}, r"encoder\.dim: expected at least 1, got 0"),
    ],
)
def test_settings_that_can_never_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with refused(words):
        EncoderSettings(model="any", **settings)


@pytest.mark.skipif(torch.cuda.device_count() > 6, reason="needs a machine with fewer GPUs")
def test_a_device_that_does_not_exist_is_refused(load: Load, folder: Path) -> None:
    with refused("expected cuda:7 on this machine"):
        load(device="cuda:7")
