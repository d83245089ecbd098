"""The forward pass for GPUs, as far as a CPU can run it: without graphs, and with other attention than flash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder.tiny_models import TEXTS, lowest_cosine
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import nn

from indexing.encoder import EncoderSettings
from indexing.encoder import encoder as encoder_module
from indexing.encoder.batching import TOKENS_PER_TEXT, Batch, PackedBatch, plan_packed
from indexing.encoder.device import dtype_here, is_out_of_memory, pick_dtype
from indexing.encoder.encoder import Encoder, Tower
from indexing.encoder.layout import read_layout
from indexing.encoder.load import load_parts
from indexing.encoder.packed import PackedForward, make_inputs
from indexing.encoder.unpadded import PackedBert, linear_for
from indexing.errors import ConfigError

Make = Callable[..., SentenceTransformer]
LoadPacked = Callable[..., Encoder]
EXACT = 0.99999
POOLINGS = ["cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean", ("mean", "max")]
TOO_LARGE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
]


def varlen_on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: Any, *_: Any) -> torch.Tensor:
    """What torch.nn.attention.varlen does on a GPU: (N, A, D) each to (N, A, D)."""
    contexts = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        parts = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        contexts.append(nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1))
    return torch.cat(contexts)


@pytest.fixture
def load_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadPacked:
    """The model at tmp_path/model with the layers of a GPU; batches are filled to `sizes` where they are `fixed`."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_on_cpu)

    def load(*, fixed: bool = True, sizes: tuple[int, ...] = (128, 256)) -> Encoder:
        layout, cpu = read_layout(tmp_path / "model"), torch.device("cpu")
        parts = load_parts(layout, EncoderSettings(model="", max_tokens=64), torch.float32, cpu)
        bert = PackedBert(parts.model, linear_for(torch.device("cuda"), 0))
        packed = PackedForward(bert, parts.head, parts.tokens.max_tokens, sizes, fixed=fixed)
        tower = Tower(
            tokens=parts.tokens, backbone=bert, head=parts.head, include_prompt=layout.include_prompt, packed=packed
        )
        return Encoder(query=tower, document=tower, prompts=layout.prompts, batch_tokens=128, num_threads=1)

    return load


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_texts_have_the_vectors_of_padded_ones(
    make_model: Make, load_packed: LoadPacked, pooling: str, fixed: bool
) -> None:
    truth = make_model(pooling).encode(TEXTS)
    encoder = load_packed(fixed=fixed)
    assert lowest_cosine(encoder.encode(TEXTS), truth) >= EXACT
    assert encoder.stats.num_texts == len(TEXTS)


@pytest.mark.parametrize("fixed", [True, False])
def test_roberta_counts_its_positions_in_packed_texts_too(
    make_model: Make, load_packed: LoadPacked, fixed: bool
) -> None:
    texts = [*TEXTS, "[PAD] a padding token [PAD] inside of a text"]
    truth = make_model("mean", kind="roberta").encode(texts)
    assert lowest_cosine(load_packed(fixed=fixed).encode(texts), truth) >= EXACT


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_a_prompt_is_left_out_of_packed_texts_too(make_model: Make, load_packed: LoadPacked, pooling: str) -> None:
    peer = make_model(pooling, include_prompt=False, prompts={"query": "search for: "})
    texts = [text for text in TEXTS if len(text) > 1]
    assert lowest_cosine(load_packed().encode(texts, "query"), peer.encode_query(texts)) >= EXACT


@given(st.lists(st.integers(1, 300), max_size=80))
def test_packed_batches_fill_the_sizes_and_hold_each_text_once(lengths: list[int]) -> None:
    lengths.sort(reverse=True)
    plan = plan_packed(np.array(lengths, np.int64), (128, 512))
    assert [length for texts in plan for length in lengths[texts]] == lengths
    for texts in plan:
        batch = lengths[texts]
        assert len(batch) == 1 or (sum(batch) <= 512 and len(batch) <= 512 // TOKENS_PER_TEXT)


def batch_of(*lengths: int) -> PackedBatch:
    return PackedBatch(
        rows=np.arange(len(lengths)),
        input_ids=torch.arange(sum(lengths)),
        lengths=torch.tensor(lengths),
        num_truncated=0,
    )


def test_all_inputs_of_a_size_have_one_shape() -> None:
    """Whatever the texts: else their graph could not be replayed."""
    batches = (batch_of(7, 5), batch_of(*[8] * 16), batch_of(50, 50, 20), batch_of(1))
    shapes = {tuple(tensor.shape for tensor in make_inputs(batch, 3, 1, 128, 50)) for batch in batches}
    assert len(shapes) == 1


def test_halves_of_a_packed_batch_have_their_own_tokens() -> None:
    first, second = batch_of(5, 3, 2).halves()
    assert (first.input_ids.tolist(), second.input_ids.tolist()) == (list(range(5)), list(range(5, 10)))
    assert (first.rows.tolist(), second.rows.tolist()) == ([0], [1, 2])


def limit_tokens(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """From now on a packed batch of more than `most` tokens runs out of memory; the sizes of those that were tried."""
    call, tried = PackedForward.__call__, []

    def limited(self: PackedForward, batch: PackedBatch, num_skipped: int) -> torch.Tensor:
        tried.append(batch.num_tokens)
        if batch.num_tokens > most:
            raise error
        return call(self, batch, num_skipped)

    monkeypatch.setattr(PackedForward, "__call__", limited)
    return tried


@pytest.mark.parametrize("error", TOO_LARGE)
def test_only_sizes_that_the_device_has_memory_for_are_kept(
    make_model: Make, load_packed: LoadPacked, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make_model()
    packed = load_packed(sizes=(128, 512, 2048)).towers["document"].packed
    assert packed is not None
    with monkeypatch.context() as patch:
        limit_tokens(patch, 600, error)
        packed.probe()
    assert packed.sizes == (128, 512)
    limit_tokens(monkeypatch, 100, error)
    with pytest.raises(ConfigError, match=r"expected memory for a batch of 128 tokens on cpu, got: .*batch_tokens"):
        packed.probe()


def test_another_error_of_a_probe_is_raised(
    make_model: Make, load_packed: LoadPacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model()
    packed = load_packed().towers["document"].packed
    assert packed is not None
    limit_tokens(monkeypatch, 0, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        packed.probe()


@pytest.mark.parametrize("error", TOO_LARGE)
def test_a_size_for_which_memory_ran_out_is_not_tried_again(
    make_model: Make, load_packed: LoadPacked, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make_model()
    encoder, texts = load_packed(fixed=False), TEXTS * 10
    whole = encoder.encode(texts)
    tried = limit_tokens(monkeypatch, 100, error)
    assert ((encoder.encode(texts) * whole).sum(axis=1) > EXACT).all()
    assert sum(size > 100 for size in tried) <= 2


def test_padded_batches_remember_it_too(make_model: Make, load: LoadPacked, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model()
    forward, failed = encoder_module._forward, []

    def limited(batch: Batch, tower: Tower, num_skipped: int) -> torch.Tensor:
        if batch.num_tokens > 100:
            failed.append(batch.num_tokens)
            raise TOO_LARGE[0]
        return forward(batch, tower, num_skipped)

    monkeypatch.setattr(encoder_module, "_forward", limited)
    encoder = load(batch_tokens=256)
    encoder.encode(TEXTS * 10)
    assert 1 <= len(failed) <= 2 < encoder.stats.num_oom_splits


def test_errors_that_are_not_about_memory_are_not_taken_for_it() -> None:
    assert all(is_out_of_memory(error) for error in TOO_LARGE if isinstance(error, RuntimeError))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))


@pytest.mark.parametrize(
    ("generation", "dtype", "for_readers"),
    [(9, torch.bfloat16, "bfloat16"), (7, torch.float16, "float32"), (6, torch.float32, "float32")],
)
def test_the_number_format_follows_the_generation_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, generation: int, dtype: torch.dtype, for_readers: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (generation, 0))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert pick_dtype("auto", torch.device("cuda")) == dtype
    assert dtype_here("auto", "cuda") == for_readers


def test_vectors_of_the_job_are_the_readers_own_rounded_once(make_model: Make, load_packed: LoadPacked) -> None:
    make_model()
    encoder = load_packed()
    tokens = encoder.towers["document"].tokens.tokenise(TEXTS, "")
    found = encoder.encode_tokens(tokens)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, encoder.encode(TEXTS).astype(np.float16))
