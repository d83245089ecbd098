"""Texts to token batches: sorted by length, filled to a token budget. Depends on the texts only, never on timing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts tokenised and sorted together: bounds memory, and lets a GPU start before all texts are tokenised.
WINDOW = 16_384


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Texts of similar length, longest first. On CUDA the tensors are pinned."""

    rows: np.ndarray
    """int64 (num_rows,), positions in the caller's list."""
    input_ids: torch.Tensor
    """int64 (num_rows, max_length), padded on the right."""
    lengths: torch.Tensor
    """int64 (num_rows,), descending."""

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two batches of half the rows each; the second one is narrower where its texts are shorter."""
        middle = len(self.rows) // 2
        width = int(self.lengths[middle])
        return (
            Batch(rows=self.rows[:middle], input_ids=self.input_ids[:middle], lengths=self.lengths[:middle]),
            Batch(rows=self.rows[middle:], input_ids=self.input_ids[middle:, :width], lengths=self.lengths[middle:]),
        )


@dataclass
class TokenCounts:
    """Filled while batches are made."""

    num_tokens: int = 0
    num_truncated: int = 0


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split texts into batches with rows × longest ≤ batch_tokens (a single longer text is a batch of its own).

    lengths: int (num_texts,), each at least 1. Returns int64 positions per batch, longest texts first, ties in order.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        num_rows = max(1, batch_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + num_rows])
        start += num_rows
    return batches


def make_batches(
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    *,
    prompt: str,
    batch_tokens: int,
    pad_id: int,
    filler_id: int,
    pin: bool,
    counts: TokenCounts,
) -> Iterator[Batch]:
    """Tokenise window by window and yield the batches; filler_id stands in for a text that has no token at all."""
    for start in range(0, len(texts), WINDOW):
        window = [prompt + text for text in texts[start : start + WINDOW]]
        encodings = tokenizer.encode_batch_fast(window)
        counts.num_truncated += sum(1 for encoding in encodings if encoding.overflowing)
        ids = [encoding.ids or [filler_id] for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        counts.num_tokens += len(flat)
        for rows in plan_batches(lengths, batch_tokens):
            input_ids = _padded(flat, starts[rows], lengths[rows], pad_id)
            yield Batch(rows=rows + start, input_ids=_tensor(input_ids, pin), lengths=_tensor(lengths[rows], pin))


def _padded(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, pad_id: int) -> np.ndarray:
    columns = np.arange(lengths[0])
    inside = columns < lengths[:, None]
    return np.where(inside, flat[np.minimum(starts[:, None] + columns, len(flat) - 1)], pad_id)


def _tensor(array: np.ndarray, pin: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor
