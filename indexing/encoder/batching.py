"""Texts to token batches: sorted by length, filled to a token budget. Depends on the texts only, never on timing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts tokenised and sorted together: bounds memory, and a GPU starts before all texts are tokenised.
WINDOW = 16_384


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


class Tokens:
    """A tokenizer that truncates to max_tokens and leaves padding to the batches."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.enable_truncation(max_tokens)
        self._special = set(tokenizer.all_special_ids)
        self._pad_id: int = tokenizer.pad_token_id or 0
        # Some tokenizers give no token at all for an empty text; a model needs at least one.
        self._filler_id: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self._pad_id

    def count(self, prompt: str) -> int:
        """Tokens of a prompt, without the special token that closes a text."""
        ids = self._backend.encode(prompt).ids if prompt else []
        return len(ids) - (1 if ids and ids[-1] in self._special else 0)

    def batches(self, texts: Sequence[str], prompt: str, batch_tokens: int, *, pin: bool) -> Iterator[Batch]:
        """Tokenise window by window and yield each window's batches, longest texts first; pin for CUDA copies."""
        for start in range(0, len(texts), WINDOW):
            encodings = self._backend.encode_batch_fast([prompt + text for text in texts[start : start + WINDOW]])
            ids = [encoding.ids or [self._filler_id] for encoding in encodings]
            cut = np.fromiter((bool(encoding.overflowing) for encoding in encodings), bool, len(ids))
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
            starts = np.cumsum(lengths) - lengths
            for rows in plan_batches(lengths, batch_tokens):
                yield Batch(
                    rows=rows + start,
                    input_ids=_tensor(_pad(flat, starts[rows], lengths[rows], self._pad_id), pin),
                    lengths=_tensor(lengths[rows], pin),
                    num_truncated=int(cut[rows].sum()),
                )


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split texts into batches with rows × longest ≤ batch_tokens; a single longer text is a batch of its own.

    lengths: int64 (num_texts,), at least 1 each. Returns int64 positions per batch, longest first, ties in order.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        num_rows = max(1, batch_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + num_rows])
        start += num_rows
    return batches


def _pad(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, pad_id: int) -> np.ndarray:
    """int64 (num_rows, longest) from the tokens of all texts in a row."""
    columns = np.arange(lengths[0])
    positions = np.minimum(starts[:, None] + columns, len(flat) - 1)
    return np.where(columns < lengths[:, None], flat[positions], pad_id)


def _tensor(array: np.ndarray, pin: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor
