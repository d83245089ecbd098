"""The encode loop: order, determinism, budgets, truncation, running out of memory."""

from __future__ import annotations

import gc
import logging
import pickle
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder.tiny_models import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from indexing.encoder import EncoderSettings, EncodeStats, load_tokeniser
from indexing.encoder import encoder as encoder_module
from indexing.encoder import tokens as tokens_module
from indexing.encoder.batching import Batch, plan_batches
from indexing.encoder.encoder import Encoder, Tower
from indexing.errors import ConfigError, DataError

Make = Callable[..., SentenceTransformer]
Load = Callable[..., Encoder]

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"


@pytest.fixture
def encoder(make_model: Make, load: Load) -> Encoder:
    make_model()
    return load(batch_tokens=128)


@pytest.fixture
def many() -> list[str]:
    words = " ".join(TEXTS).split()
    chosen = random.Random(3)
    return [" ".join(chosen.choices(words, k=chosen.randint(0, 30))) for _ in range(300)]


class Watching:
    """A tokenizer that notes the length of each text it is given."""

    def __init__(self, backend: Any, seen: list[int]) -> None:
        self._backend, self._seen = backend, seen

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self._seen += map(len, texts)
        return self._backend.encode_batch_fast(texts)

    def encode(self, text: str) -> Any:
        self._seen.append(len(text))
        return self._backend.encode(text)


def limit_rows(monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], Exception]) -> None:
    """From now on a forward pass of more than `most` texts runs out of memory."""
    forward = encoder_module._forward

    def limited(batch: Batch, tower: Tower, num_skipped: int) -> torch.Tensor:
        if len(batch.rows) > most:
            raise error()
        return forward(batch, tower, num_skipped)

    monkeypatch.setattr(encoder_module, "_forward", limited)


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 300))
def test_batches_hold_each_text_once_and_never_pass_the_budget(lengths: list[int], batch_tokens: int) -> None:
    lengths.sort(reverse=True)
    batches = [lengths[texts] for texts in plan_batches(np.array(lengths, np.int64), batch_tokens)]
    assert [length for batch in batches for length in batch] == lengths
    for batch in batches:
        assert len(batch) * batch[0] <= batch_tokens or len(batch) == 1


def test_vectors_come_in_the_order_of_the_texts(encoder: Encoder, many: list[str]) -> None:
    vectors = encoder.encode(many)
    order = random.Random(5).sample(range(len(many)), len(many))
    shuffled = encoder.encode([many[i] for i in order])
    assert ((shuffled * vectors[order]).sum(axis=1) > 0.99999).all()


def test_the_same_texts_give_the_same_bits_whatever_the_number_of_threads(
    make_model: Make, load: Load, many: list[str]
) -> None:
    make_model()
    one, three = load(dtype="bfloat16"), load(dtype="bfloat16")
    three.num_threads = 3
    first = one.encode(many)
    np.testing.assert_array_equal(one.encode(many), first)
    np.testing.assert_array_equal(three.encode(many), first)


def test_a_list_longer_than_one_window_is_whole_and_in_order(
    encoder: Encoder, many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.encode(many)
    monkeypatch.setattr(tokens_module, "WINDOW", 64)
    windows = encoder.encode(many)
    assert ((windows * whole).sum(axis=1) > 0.99999).all()


def test_a_giant_text_is_cut_before_it_is_tokenised(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = encoder.towers["document"].tokens
    for text in ("the history of rome. " * 50_000, "日本の音楽" * 100_000, "🎧 " * 200_000, "a," * 300_000):
        with monkeypatch.context() as whole:
            whole.setattr(tokens_module, "MIN_CHARS", 10**9)
            expected = tokens._tokenise([text], "")
        seen: list[int] = []
        with monkeypatch.context() as watched:
            watched.setattr(tokens, "_backend", Watching(tokens._backend, seen))
            found = tokens._tokenise([text], "")
        assert (found[0], found[1].tolist()) == (expected[0], [True])
        assert max(seen) <= 4_096


@pytest.mark.parametrize("filler", [" ", "x", "\u200b", " \n\t"])
def test_a_text_that_begins_with_few_tokens_is_read_further(encoder: Encoder, filler: str) -> None:
    tokens = encoder.towers["document"].tokens
    text = filler * (9_000 // len(filler)) + " jazz news"
    ids, cut = tokens._tokenise([text, "jazz news"], "")
    assert ids[0] == tokens._backend.encode(text).ids and not cut.any()
    assert ids[0][-3:] == ids[1][-3:]


def test_what_is_longer_than_is_ever_read_counts_as_truncated(encoder: Encoder) -> None:
    encoder.encode([" " * 70_000 + "jazz", "jazz"])  # 1,024 characters for each of 64 tokens
    assert encoder.stats.num_truncated == 1


@given(st.lists(st.integers(0, 3_000), max_size=60))
def test_texts_are_tokenised_in_chunks_that_hold_few_characters(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokens_module, "CHUNK_CHARS", 5_000)
        chunks = list(tokens_module._chunks(texts, 2_000))
    assert [row for chunk in chunks for row in range(len(texts))[chunk]] == list(range(len(texts)))
    for chunk in chunks:
        assert sum(min(length, 2_000) for length in lengths[chunk]) <= 5_000


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.stats == EncodeStats()


def test_progress_adds_up_to_all_texts_and_stats_are_of_the_last_call(encoder: Encoder, many: list[str]) -> None:
    told: list[int] = []
    encoder.encode(many, on_batch=told.append)
    assert sum(told) == len(many) and len(told) > 10
    encoder.encode(["jazz", "news"])
    assert (encoder.stats.num_texts, encoder.stats.num_truncated) == (2, 0)


def test_asking_for_more_tokens_than_the_model_has_is_said(
    make_model: Make, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    make_model()
    with caplog.at_level(logging.WARNING):
        assert load(max_tokens=500).max_tokens == 64
    assert "500 exceeds the model's own limit, using 64" in caplog.text


@pytest.mark.parametrize(
    "error", [lambda: torch.OutOfMemoryError("CUDA out of memory"), lambda: RuntimeError(CPU_MESSAGE)]
)
def test_out_of_memory_splits_the_batch_and_loses_nothing(
    encoder: Encoder, many: list[str], monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    whole = encoder.encode(many)
    limit_rows(monkeypatch, 3, error)
    assert ((encoder.encode(many) * whole).sum(axis=1) > 0.99999).all()
    assert encoder.stats.num_oom_splits > 10
    assert encoder.stats.num_tokens == sum(
        len(encoder.towers["document"].tokens._backend.encode(text).ids) for text in many
    )


def test_a_text_that_does_not_fit_alone_is_a_clear_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_rows(monkeypatch, 0, lambda: RuntimeError(CPU_MESSAGE))
    with pytest.raises(ConfigError, match=r"expected memory for a single text of .* tokens on cpu, got: .*alloc_cpu"):
        encoder.encode(["jazz", "news"])


def test_another_failure_is_not_taken_for_lack_of_memory_and_leaves_no_thread(
    encoder: Encoder, many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_rows(monkeypatch, 0, lambda: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        encoder.encode(many)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_a_split_frees_the_tensors_of_the_failed_attempt_first(
    encoder: Encoder, many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    forward = encoder_module._forward

    def failing_once(batch: Batch, tower: Tower, num_skipped: int) -> torch.Tensor:
        if not held:
            large = torch.zeros(10)
            held.append(weakref.ref(large))
            raise RuntimeError(CPU_MESSAGE)
        assert held[0]() is None
        return forward(batch, tower, num_skipped)

    monkeypatch.setattr(encoder_module, "_forward", failing_once)
    gc.disable()
    try:
        encoder.encode(many[:20])
    finally:
        gc.enable()
    assert len(held) == 1 <= encoder.stats.num_oom_splits


def test_vectors_that_are_not_finite_are_refused(make_model: Make, load: Load, tmp_path: Path) -> None:
    make_model()
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}, path)
    with pytest.raises(DataError, match=r"expected vectors of norm 1 .* got nan for text 0 \(2 of 2 texts\)"):
        load().encode(["jazz", "news"])


def test_torch_is_not_loaded_until_an_encoder_is_and_not_to_tokenise(make_model: Make, tmp_path: Path) -> None:
    make_model()
    settings = EncoderSettings(model="", device="cpu", max_tokens=9)
    tokenise = load_tokeniser(tmp_path / "model", settings)
    (tmp_path / "tokeniser").write_bytes(pickle.dumps(tokenise))
    code = (
        "import pickle, sys, indexing.encoder\n"
        "tokens = pickle.load(open(sys.argv[1], 'rb'))(sys.argv[2:])\n"
        "print(tokens.to_pylist())\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tokeniser"), *TEXTS]
    printed = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert printed.stdout == f"{tokenise(TEXTS).to_pylist()}\n"


def test_texts_tokenised_elsewhere_have_the_same_vectors(
    make_model: Make, load: Load, many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(prompts={"document": "passage: "})
    monkeypatch.setattr(tokens_module, "WINDOW", 64)
    monkeypatch.setattr(encoder_module, "WINDOW", 64)
    encoder = load(batch_tokens=128)
    tokens = load_tokeniser(tmp_path / "model", EncoderSettings(model="", device="cpu", max_tokens=64))(many)
    vectors = encoder.encode_tokens(tokens)
    stats = encoder.stats
    np.testing.assert_array_equal(vectors, encoder.encode(many).astype(np.float16))
    assert stats == encoder.stats
    assert encoder.encode_tokens(tokens.slice(0, 0)).shape == (0, 32)
