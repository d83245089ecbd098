"""Token ids to batches of similar length, filled to a token budget. Depends on the texts only, never on timing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

TOKENS_PER_TEXT = 8
"""A batch of a fixed number of tokens has room for this many times fewer texts."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Texts of similar length, longest first."""

    rows: np.ndarray
    """int64 (num_rows,), positions in the caller's list."""
    input_ids: torch.Tensor
    """int64 (num_rows, longest), padded on the right."""
    lengths: torch.Tensor
    """int64 (num_rows,) in tokens, descending."""
    num_truncated: int

    @property
    def num_tokens(self) -> int:
        """What the model is given, padding included."""
        return self.input_ids.numel()

    def halves(self) -> list["Batch"]:
        """Two batches of half the rows each, the second as narrow as its texts allow."""
        middle = len(self.rows) // 2
        return [
            Batch(
                rows=self.rows[half],
                input_ids=self.input_ids[half, : int(self.lengths[half][0])],
                lengths=self.lengths[half],
                num_truncated=0,  # counted with the whole batch
            )
            for half in (slice(0, middle), slice(middle, None))
        ]


class PackedBatch(Batch):
    """The same with the tokens of one text after those of another: input_ids is int64 (num_tokens,)."""

    def halves(self) -> list[Batch]:
        middle = len(self.rows) // 2
        first = int(self.lengths[:middle].sum())
        parts = ((slice(0, middle), slice(0, first)), (slice(middle, None), slice(first, None)))
        return [
            PackedBatch(
                rows=self.rows[half], input_ids=self.input_ids[ids], lengths=self.lengths[half], num_truncated=0
            )
            for half, ids in parts
        ]


def packed_batches(windows: Iterable[pa.Table], sizes: Sequence[int]) -> Iterator[PackedBatch]:
    """Each window's batches, which fill `sizes`, ascending, as `plan_packed` says; a window is TOKENISED."""
    for window in windows:
        ids = window["ids"].combine_chunks()
        lengths = pc.list_value_length(ids).to_numpy().astype(np.int64)
        flat, rows = ids.flatten().to_numpy().astype(np.int64), window["row"].to_numpy().astype(np.int64)
        ends, is_cut = np.cumsum(lengths), window["is_cut"].to_numpy()
        for texts in plan_packed(lengths, sizes):
            tokens = slice(ends[texts.start] - lengths[texts.start], ends[texts.stop - 1])
            yield PackedBatch(
                rows=rows[texts],
                input_ids=torch.from_numpy(flat[tokens]),
                lengths=torch.from_numpy(lengths[texts]),
                num_truncated=int(is_cut[texts].sum()),
            )


def plan_packed(lengths: np.ndarray, sizes: Sequence[int]) -> list[slice]:
    """Split texts into runs that fill the largest of `sizes` for which there are tokens left, else the smallest.

    lengths: int64 (num_texts,), at least 1 each. Of a size at most every TOKENS_PER_TEXT-th token begins a text; a
    single longer text is a batch of its own.
    """
    ends = np.cumsum(lengths)
    plan, start = [], 0
    while start < len(lengths):
        before = ends[start] - lengths[start]
        size = max((size for size in sizes if size <= ends[-1] - before), default=sizes[0])
        stop = int(np.searchsorted(ends, before + size, "right"))
        plan.append(slice(start, max(start + 1, min(stop, start + size // TOKENS_PER_TEXT))))
        start = plan[-1].stop
    return plan


def batches(windows: Iterable[pa.Table], pad_id: int, batch_tokens: int, *, pin: bool) -> Iterator[Batch]:
    """Each window's batches, longest texts first; a window is TOKENISED. Pin for copies to CUDA."""
    for window in windows:
        ids = window["ids"].combine_chunks()
        lengths = pc.list_value_length(ids).to_numpy().astype(np.int64)
        flat, rows = ids.flatten().to_numpy().astype(np.int64), window["row"].to_numpy().astype(np.int64)
        starts, is_cut = np.cumsum(lengths) - lengths, window["is_cut"].to_numpy()
        for texts in plan_batches(lengths, batch_tokens):
            yield Batch(
                rows=rows[texts],
                input_ids=_tensor(_pad(flat, starts[texts], lengths[texts], pad_id), pin),
                lengths=_tensor(lengths[texts], pin),
                num_truncated=int(is_cut[texts].sum()),
            )


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[slice]:
    """Split texts into batches with rows × longest ≤ batch_tokens; a single longer text is a batch of its own.

    lengths: int64 (num_texts,), at least 1 each, descending.
    """
    plan, start = [], 0
    while start < len(lengths):
        num_rows = max(1, batch_tokens // int(lengths[start]))
        plan.append(slice(start, min(start + num_rows, len(lengths))))
        start += num_rows
    return plan


def _pad(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, pad_id: int) -> np.ndarray:
    """int64 (num_rows, longest) from the concatenated tokens of all texts."""
    columns = np.arange(lengths[0])
    positions = np.minimum(starts[:, None] + columns, len(flat) - 1)
    return np.where(columns < lengths[:, None], flat[positions], pad_id)


def _tensor(array: np.ndarray, pin: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor
