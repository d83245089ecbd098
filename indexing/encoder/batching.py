"""Texts to token batches: sorted by length, filled to a token budget. Depends on the texts only, never on timing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

# Texts tokenised and sorted together: bounds memory, and a GPU starts before all texts are tokenised.
WINDOW = 16_384
# Characters tokenised at once. A tokenizer takes some 90 bytes for each, for as long as its results are kept.
CHUNK_CHARS = 1_048_576
# A text is read up to the first number of characters per wanted token. Where these hold too few tokens (long runs of
# spaces, words that are unknown as a whole), it is read again up to the second. What follows is never tokenised.
CHARS_PER_TOKEN, MAX_CHARS_PER_TOKEN = 16, 1_024
MIN_CHARS = 4_096


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
            ids, cut = self._tokenise(texts[start : start + WINDOW], prompt)
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

    def _tokenise(self, texts: Sequence[str], prompt: str) -> tuple[list[list[int]], np.ndarray]:
        """Token ids of each text, and bool (num_texts,): whether something of it was cut off."""
        ids: list[list[int]] = []
        cut = np.zeros(len(texts), bool)
        enough = max(MIN_CHARS, CHARS_PER_TOKEN * self.max_tokens)
        for chunk in _chunks(texts, enough):
            encodings = self._backend.encode_batch_fast([prompt + text[:enough] for text in texts[chunk]])
            for row, encoding in enumerate(encodings, chunk.start):
                # Otherwise max_tokens more than are kept were read, so the kept ones do not depend on the cut.
                if len(texts[row]) > enough and len(encoding.overflowing) < 2:
                    encoding, cut[row] = self._read_further(prompt, texts[row])
                ids.append(encoding.ids or [self._filler_id])
                cut[row] |= len(encoding.overflowing) > 0
        return ids, cut

    def _read_further(self, prompt: str, text: str) -> tuple["Encoding", bool]:
        """The tokens of a text that has few for its length, and whether the text is too long to be read whole."""
        max_chars = max(MIN_CHARS, MAX_CHARS_PER_TOKEN * self.max_tokens)
        return self._backend.encode(prompt + text[:max_chars]), len(text) > max_chars


def _chunks(texts: Sequence[str], max_chars: int) -> Iterator[slice]:
    """Runs of texts with at most CHUNK_CHARS characters together, where each text counts at most max_chars."""
    start = num_chars = 0
    for row, text in enumerate(texts):
        num_chars += min(len(text), max_chars)
        if num_chars > CHUNK_CHARS and row > start:
            yield slice(start, row)
            start, num_chars = row, min(len(text), max_chars)
    if start < len(texts):
        yield slice(start, len(texts))


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
    """int64 (num_rows, longest) from the concatenated tokens of all texts."""
    columns = np.arange(lengths[0])
    positions = np.minimum(starts[:, None] + columns, len(flat) - 1)
    return np.where(columns < lengths[:, None], flat[positions], pad_id)


def _tensor(array: np.ndarray, pin: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor
