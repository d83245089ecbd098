"""docs/models.md states the effect of every setting: each row of its table is tested."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder.tiny_models import TEXTS, lowest_cosine
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from indexing.encoder.encoder import Encoder
from indexing.errors import ConfigError

Make = Callable[..., SentenceTransformer]
Load = Callable[..., Encoder]
Row = tuple[str, str]
EXACT = 0.99999
MIXED = [*TEXTS, "The [SEP] NIGHT", "JAZZ"]

MODULES, MODEL, TRANSFORMER = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING, DENSE, NORMALIZE = "1_Pooling/config.json", "2_Dense/config.json", "3_Normalize/config.json"
CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
ANY_OUTPUT = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
TANH, RELU = "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.ReLU"
SAVED = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"


def pooling(mode: Any) -> dict[str, Any]:
    return {"pooling_mode": mode}


@dataclass(frozen=True)
class Change:
    """What is written into the row's file; `words` are in the message of a refusal."""

    values: dict[str, Any]
    words: str = ""
    head: str = "dense"
    same: bool = False
    """Honoured, though with this value the vectors stay the same."""


HONOURED: dict[Row, Change] = {
    (MODULES, "`type` of sentence-transformers' Transformer, Pooling, Dense, Normalize, Router"): Change(
        {"1": {"type": SAVED}}, same=True
    ),
    (MODEL, "`prompts`"): Change({"prompts": {"document": "passage: ", "query": "q: "}}),
    (MODEL, "`truncate_dim`"): Change({"truncate_dim": 9}),
    (MODEL, "`similarity_fn_name` dot, after Normalize"): Change({"similarity_fn_name": "dot"}, head="unit", same=True),
    (TRANSFORMER, "`max_seq_length`"): Change({"max_seq_length": 8}),
    (TRANSFORMER, "`do_lower_case`"): Change({"do_lower_case": True}),
    **{
        (POOLING, f"`pooling_mode` {mode}"): Change(pooling(mode), same=mode == "mean_sqrt_len_tokens", head="none")
        for mode in ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    },
    (POOLING, "`pooling_mode` of several"): Change(pooling(["max", "cls", "mean_sqrt_len_tokens"]), head="none"),
    (DENSE, "`activation_function` of torch.nn"): Change({"activation_function": RELU}),
    (CONFIG, "`hidden_act`"): Change({"hidden_act": "relu"}),
    (CONFIG, "`is_decoder`"): Change({"is_decoder": True}),
    (CONFIG, "`layer_norm_eps`"): Change({"layer_norm_eps": 0.5}),
    (TOKENIZER, "`model_max_length`"): Change({"model_max_length": 7}),
    (TOKENIZER, "`split_special_tokens`"): Change({"split_special_tokens": True}),
}
REFUSED: dict[Row, Change] = {
    (MODULES, "`type` of another module"): Change(
        {"2": {"type": "sentence_transformers.models.LayerNorm"}}, "module 2 to be Dense or Normalize, got LayerNorm"
    ),
    (MODULES, "`type` of a class outside sentence-transformers"): Change(
        {"0": {"type": "custom_st.Transformer"}}, "module 0 to be Transformer, got custom_st.Transformer"
    ),
    (MODEL, "`similarity_fn_name` dot, without Normalize"): Change(
        {"similarity_fn_name": "dot"}, "similarity_fn_name cosine, got dot; without Normalize"
    ),
    (MODEL, "`similarity_fn_name` dot, with fewer dimensions"): Change(
        {"similarity_fn_name": "dot", "truncate_dim": 9}, "similarity_fn_name cosine with 9 of 24 dimensions", "unit"
    ),
    **{
        (MODEL, f"`similarity_fn_name` {name}"): Change(
            {"similarity_fn_name": name}, f"similarity_fn_name cosine, got {name}", "unit"
        )
        for name in ("euclidean", "manhattan")
    },
    (TRANSFORMER, "`max_seq_length` that is not a number"): Change(
        {"max_seq_length": "9"}, "expected max_seq_length to be a whole number above 0, got '9'"
    ),
    (TRANSFORMER, "`max_seq_length` with no room for a token"): Change(
        {"max_seq_length": 2}, "max_seq_length: expected at least 3 for this tokenizer, got 2"
    ),
    (TRANSFORMER, "`config_args` that change the model"): Change(
        {"config_args": {"num_hidden_layers": 1}}, "no config_args that change the model, got num_hidden_layers"
    ),
    (TRANSFORMER, "`tokenizer_args` that change tokens"): Change(
        {"tokenizer_args": {"add_prefix_space": True}}, "no tokenizer_args that change the model, got add_prefix_space"
    ),
    (TRANSFORMER, "`processing_kwargs`"): Change(
        {"processing_kwargs": {"text": {"max_length": 5}}}, "processing_kwargs"
    ),
    (TRANSFORMER, "`module_output_name`"): Change(
        {"module_output_name": "sentence_embedding"}, "module_output_name token_embeddings, got sentence_embedding"
    ),
    (TRANSFORMER, "`modality_config` of another output"): Change({"modality_config": ANY_OUTPUT}, "modality_config"),
    (TRANSFORMER, "`query_length`"): Change({"query_length": 32}, "query_length"),
    (POOLING, "`pooling_mode` that is not known"): Change(pooling("attention"), "pooling modes among .* got attention"),
    (DENSE, "`activation_function` of another place"): Change(
        {"activation_function": "evil.Run"}, "torch.nn, got evil"
    ),
    (DENSE, "`module_output_name`"): Change({"module_output_name": "token_embeddings"}, "module_output_name sentence"),
    (DENSE, "`use_residual`"): Change({"use_residual": True}, "use_residual False, got True"),
    (NORMALIZE, "`module_input_name`"): Change({"module_input_name": "token_embeddings"}, "module_input_name", "unit"),
    (CONFIG, "`position_embedding_type` relative_key"): Change(
        {"position_embedding_type": "relative_key"}, "position_embedding_type relative_key is not supported"
    ),
    (CONFIG, "`quantization_config`"): Change(
        {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config .* is not supported"
    ),
    (TOKENIZER, "`truncation_side` left"): Change({"truncation_side": "left"}, "truncation_side right, got left"),
    ("adapter_config.json", "the file"): Change({"peft_type": "LORA"}, "got adapter_config.json"),
    ("tokenizer.json", "more tokens than the model has embeddings"): Change(
        {"added_tokens": [{"id": 400 + number, "content": f"[NEW{number}]"} for number in range(400)]},
        "at most 400 tokens, which is how many embeddings the model has, got [4-8]",
    ),
    **{
        (name, "a setting that is not known"): Change({"new_in_9": 1}, "known settings, got new_in_9")
        for name in (MODEL, TRANSFORMER, POOLING)
    },
}
NO_EFFECT: dict[Row, Change] = {
    (MODULES, "`kwargs`"): Change({"0": {"kwargs": ["task"]}}),
    (MODEL, "`default_prompt_name`"): Change({"prompts": {"other": "other: "}, "default_prompt_name": "other"}),
    (MODEL, "`requirements`"): Change({"requirements": {}}),
    (TRANSFORMER, "`unpad_inputs`"): Change({"unpad_inputs": False}),
    (TRANSFORMER, "`model_args` with dtype"): Change({"model_args": {"dtype": "float16"}}),
    (POOLING, "`embedding_dimension`"): Change({"embedding_dimension": 7}),
    (CONFIG, "`chunk_size_feed_forward`"): Change({"chunk_size_feed_forward": 3}),
    (CONFIG, "`return_dict`"): Change({"return_dict": False}),
    (CONFIG, "`output_hidden_states`"): Change({"output_hidden_states": True}),
    (CONFIG, "`dtype`"): Change({"dtype": "float16"}),
    (TOKENIZER, "`padding_side`"): Change({"padding_side": "left"}),
}
HEADS: dict[str, list[Any]] = {"none": [], "dense": [Dense(32, 24)], "unit": [Dense(32, 24), Normalize()]}


def edit(path: Path, values: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    if isinstance(content, list):  # modules.json: position → changes
        content = [entry | values.get(str(position), {}) for position, entry in enumerate(content)]
    elif path.name == "tokenizer.json":
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        content["added_tokens"] += [token | flags for token in values["added_tokens"]]
    else:
        content |= values
    path.write_text(json.dumps(content))


def test_the_table_has_exactly_the_settings_that_are_tried() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    found = {
        (name, setting): verdict
        for name, setting, verdict in re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", text, re.M)
    }
    verdicts = (("honoured", HONOURED), ("refused", REFUSED), ("no effect", NO_EFFECT))
    assert found == {row: verdict for verdict, rows in verdicts for row in rows}


@pytest.mark.parametrize("row", HONOURED, ids=" ".join)
def test_what_the_table_calls_honoured_is_honoured(make_model: Make, load: Load, tmp_path: Path, row: Row) -> None:
    what = HONOURED[row]
    make_model("mean", HEADS[what.head])
    before = load().encode(MIXED)
    edit(tmp_path / "model" / row[0], what.values)
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    after = load().encode(MIXED)
    assert lowest_cosine(after, peer.encode_document(MIXED)) >= EXACT
    unchanged = before.shape == after.shape and lowest_cosine(before, after) >= EXACT
    assert unchanged == what.same


@pytest.mark.case(21)
@pytest.mark.parametrize("row", REFUSED, ids=" ".join)
def test_what_the_table_calls_refused_is_refused_by_name(
    make_model: Make, load: Load, tmp_path: Path, row: Row
) -> None:
    make_model("mean", HEADS[REFUSED[row].head])
    edit(tmp_path / "model" / row[0], REFUSED[row].values)
    with pytest.raises(ConfigError, match=re.compile(REFUSED[row].words, re.DOTALL)):
        load()


@pytest.mark.parametrize("row", NO_EFFECT, ids=" ".join)
def test_what_the_table_says_has_no_effect_has_none(make_model: Make, load: Load, tmp_path: Path, row: Row) -> None:
    make_model("mean", HEADS["dense"])
    before = load().encode(MIXED)
    edit(tmp_path / "model" / row[0], NO_EFFECT[row].values)
    np.testing.assert_array_equal(load().encode(MIXED), before)


def test_fewer_dimensions_of_a_model_compared_by_dot_product_are_refused(
    make_model: Make, load: Load, tmp_path: Path
) -> None:
    make_model("mean", HEADS["unit"])
    edit(tmp_path / "model" / MODEL, {"similarity_fn_name": "dot"})
    with pytest.raises(ConfigError, match="cosine with 10 of 24 dimensions, got dot"):
        load(dim=10)
