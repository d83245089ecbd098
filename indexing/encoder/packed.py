"""Batches of fixed numbers of tokens on GPUs, without padding: one CUDA graph for each number. No GPU has run this yet.

A forward pass of a small encoder is some hundred launches of kernels, each of which takes the host as long as the GPU.
A graph is one launch, but of fixed shapes: a batch is filled with texts that nobody asked for, and those are left out.

Shape letters: N tokens, S texts (the last ones to fill the batch, or without tokens), H hidden size, D dimension.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from indexing.encoder.batching import TOKENS_PER_TEXT, PackedBatch
from indexing.encoder.device import is_out_of_memory
from indexing.encoder.head import Head
from indexing.encoder.unpadded import Attend, PackedBert
from indexing.errors import ConfigError, first_line

SIZES = (8_192, 32_768, 131_072)
FILLER_ID = 0


class Inputs(NamedTuple):
    """All that a forward pass depends on, made on the host: nothing on the GPU waits for it."""

    ids: torch.Tensor
    """int64 (N,)."""
    positions: torch.Tensor
    """int64 (N,), as the model counts them."""
    columns: torch.Tensor
    """int64 (N,), from 0 in each text."""
    first: torch.Tensor
    """int64 (N,): how many tokens of its text the pooling leaves out."""
    offsets: torch.Tensor
    """int32 (S + 1,): where each text begins, and where the last one ends."""


class PackedForward:
    """`PackedBert` and head on packed batches."""

    def __init__(self, bert: PackedBert, head: Head, max_tokens: int, sizes: Sequence[int], *, fixed: bool) -> None:
        """fixed: attention of variable length is there, so that batches are filled to `sizes`, as graphs on CUDA."""
        self.sizes = tuple(sizes)
        self._bert, self._head, self._max_tokens, self._fixed = bert, head, max_tokens, fixed
        self._graphs: dict[int, Graph] = {}

    def probe(self) -> None:
        """Keeps the sizes that the device has memory for, and makes their graphs. Raises ConfigError without one."""
        fitting: list[int] = []
        for size in self.sizes:
            try:
                self._try(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if not fitting:
                    where = f"a batch of {size} tokens on {self._bert.device}"
                    raise ConfigError(
                        f"expected memory for {where}, got: {first_line(error)}; set encoder.batch_tokens"
                    ) from error
                break
            fitting.append(size)
        self.sizes = tuple(fitting)

    def _try(self, size: int) -> None:
        lengths = np.full(max(1, size // self._max_tokens), min(size, self._max_tokens), np.int64)
        num_tokens = int(lengths.sum())
        batch = PackedBatch(
            rows=np.arange(len(lengths)),
            input_ids=torch.full((num_tokens,), FILLER_ID),
            lengths=torch.from_numpy(lengths),
            num_truncated=0,
        )
        self(batch, 0)
        if self._bert.device.type == "cuda":
            torch.cuda.synchronize()  # an error of a kernel shows only now

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch, num_skipped: int) -> torch.Tensor:
        """float32 (num_texts, D), unit norm, on the device; the first num_skipped tokens of a text are not pooled."""
        num_texts, device = len(batch.rows), self._bert.device
        size = self._size_for(batch)
        inputs = make_inputs(batch, num_skipped, self._bert.padding_id, size, self._max_tokens)
        if device.type == "cuda":
            inputs = Inputs(*(tensor.pin_memory() for tensor in inputs))
        if size is not None and device.type == "cuda":
            if size not in self._graphs:
                self._graphs[size] = Graph(self._run_fixed, to_device(inputs, device))
            return self._graphs[size](inputs)[:num_texts]
        inputs = to_device(inputs, device)
        if self._fixed:
            return self._run_fixed(inputs)[:num_texts]
        return self._run(inputs, self._bert.attend_by_length(batch.lengths))

    def _size_for(self, batch: PackedBatch) -> int | None:
        """None: the batch is run as it is, since it has another size than any graph, or is too small to be filled."""
        if not self._fixed or batch.num_tokens < self.sizes[0] // 4:
            return None
        return next(
            (size for size in self.sizes if batch.num_tokens <= size and len(batch.rows) <= size // TOKENS_PER_TEXT),
            None,
        )

    def _run_fixed(self, inputs: Inputs) -> torch.Tensor:
        return self._run(inputs, attend_varlen(self._bert.num_heads, inputs.offsets, self._max_tokens))

    def _run(self, inputs: Inputs, attend: Attend) -> torch.Tensor:
        hidden_NH = self._bert.forward(inputs.ids, inputs.positions, attend)
        vectors: torch.Tensor = self._head.packed(hidden_NH, inputs.columns, inputs.first, inputs.offsets)
        return vectors


class Graph:
    """A forward pass of one shape, captured once and replayed on other inputs."""

    def __init__(self, run: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> None:
        self._inputs = inputs
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate what they need in their first calls
            for _ in range(2):
                run(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile, which is an error in the default mode.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = run(inputs)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        """Of inputs in pinned memory."""
        for held, new in zip(self._inputs, inputs, strict=True):
            held.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._output.clone()


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    return Inputs(*(tensor.to(device, non_blocking=True) for tensor in inputs))


def make_inputs(
    batch: PackedBatch, num_skipped: int, padding_id: int | None, size: int | None, max_tokens: int
) -> Inputs:
    """Of a batch; with a `size` filled up to it, and to as many texts as any batch of that size may have."""
    lengths, ids = batch.lengths.numpy(), batch.input_ids.numpy()
    skipped = np.where(lengths > num_skipped, num_skipped, 0)  # a text cut down to its prompt is pooled as a whole
    if size is not None:
        missing = size - len(ids)
        fillers = [*[max_tokens] * (missing // max_tokens), missing % max_tokens]
        num_texts = size // TOKENS_PER_TEXT + size // max_tokens + 2
        lengths = np.concatenate([lengths, np.array(fillers, np.int64)])
        lengths = np.pad(lengths, (0, num_texts - len(lengths)))
        skipped = np.pad(skipped, (0, num_texts - len(skipped)))
        ids = np.pad(ids, (0, missing), constant_values=FILLER_ID)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.repeat(offsets[:-1], lengths)
    columns = np.arange(len(ids)) - starts
    positions = columns
    if padding_id is not None:  # RoBERTa counts what is not padding, which a text can hold, too
        is_word = ids != padding_id
        counted = np.concatenate([[0], np.cumsum(is_word)])
        positions = (counted[1:] - counted[starts]) * is_word + padding_id
    first = np.repeat(skipped, lengths)
    return Inputs(*map(torch.from_numpy, (ids, positions, columns, first, offsets.astype(np.int32))))


def attend_varlen(num_heads: int, offsets: torch.Tensor, max_tokens: int) -> Attend:
    """Flash attention within each text; texts without tokens cost next to nothing."""
    from torch.nn.attention.varlen import varlen_attn

    def attend(packed: torch.Tensor) -> torch.Tensor:
        query, key, value = packed.view(len(packed), 3, num_heads, -1).unbind(1)
        context = varlen_attn(query, key, value, offsets, offsets, max_tokens, max_tokens)
        assert isinstance(context, torch.Tensor)
        return context.flatten(1)

    return attend


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch and this GPU have attention of variable length (flash attention) in the number format."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:  # which comes with torch 2.10
        return False
    return device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device)[0] >= 8
