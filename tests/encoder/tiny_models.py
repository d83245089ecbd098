"""Tiny transformers with random weights, and how close two sets of vectors are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedTokenizerFast

TEXTS = [
    "rainy sunday piano",
    "Abbey Road — The Beatles",
    "",
    "two friends talk about films, books and the news of the week in a long and winding conversation",
    "Беседы о музыке и не только",
    "日本のポッドキャスト、毎週更新",
    "🎧🎶 lo-fi beats 🎶🎧",
    "a",
    "café del mar",
    "the history of rome, told in many short episodes " * 6,
    "jazz",
    "news",
]


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def _byte_pairs() -> PreTrainedTokenizerFast:
    """As decoders have it: nothing is added to a text, padding is on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "opt")
TOKENIZERS = dict.fromkeys(DECODERS, _byte_pairs)
BERT_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
DECODER_SIZES = BERT_SIZES | {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 1}
MODERN_TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
ONE_GROUP = dict.fromkeys([f"{part}_groups" for part in ("q", "k", "v", "post_attention", "intermediate", "output")], 1)
SIZES: dict[str, dict[str, Any]] = {
    "t5": T5_SIZES,
    "mt5": T5_SIZES,
    "umt5": T5_SIZES,
    "albert": BERT_SIZES | {"embedding_size": 16},
    "electra": BERT_SIZES | {"embedding_size": 16},
    "deberta-v2": BERT_SIZES | RELATIVE,
    "longformer": BERT_SIZES | {"attention_window": [16, 16]},
    "rembert": BERT_SIZES | {"input_embedding_size": 16, "output_embedding_size": 16},
    "roformer": BERT_SIZES | {"embedding_size": 32},
    "squeezebert": BERT_SIZES | ONE_GROUP | {"embedding_size": 32},
    "convbert": BERT_SIZES | {"embedding_size": 16},
    "eurobert": DECODER_SIZES,
    "mistral": DECODER_SIZES,
    "phi3": DECODER_SIZES,
    "qwen2": DECODER_SIZES | {"vocab_size": 410},
    "gemma2": DECODER_SIZES | {"query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": DECODER_SIZES
    | {"query_pre_attn_scalar": 8, "sliding_window": 16, "use_bidirectional_attention": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80, "bos_token_id": 1, "eos_token_id": 1},
    "opt": BERT_SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 1},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 80},
    "modernbert": BERT_SIZES | MODERN_TOKENS | {"global_attn_every_n_layers": 2, "local_attention": 8},
    "llama": DECODER_SIZES,
    "qwen3": DECODER_SIZES,
}


def write_transformer(folder: Path, kind: str = "bert", **config: Any) -> Path:
    """A transformers folder: two layers, 32 dimensions, weights large enough that texts differ."""
    torch.manual_seed(7)
    tokenizer = TOKENIZERS.get(kind, _word_piece)()
    sizes = {"vocab_size": 400, **SIZES.get(kind, BERT_SIZES), **config}
    made = AutoConfig.for_model(kind, **sizes)
    model = (AutoModelForTextEncoding if kind in ("t5", "mt5", "umt5") else AutoModel).from_config(made)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(1.0 if "shared" in name else 4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unit(vectors: Any) -> np.ndarray:
    """float32, unit norm: what sentence-transformers gives, as we index it."""
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def lowest_cosine(found: np.ndarray, truth: Any) -> float:
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    return float((found * unit(truth)).sum(axis=1).min())
