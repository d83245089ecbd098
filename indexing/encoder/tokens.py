"""Texts to token ids, in Arrow and ordered by length. No torch here: tasks that only tokenise stay light."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

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

TOKENISED = pa.schema([("row", pa.int32()), ("ids", pa.list_(pa.int32())), ("is_cut", pa.bool_())])
"""A tokenised text: its position among all texts, its tokens, and whether something of it was cut off. Of each WINDOW
texts the longest come first."""


class Tokens:
    """A tokenizer that truncates to max_tokens and leaves padding to the batches. It can be pickled."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.pad_id: int = tokenizer.pad_token_id or 0
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.enable_truncation(max_tokens)
        self._special = set(tokenizer.all_special_ids)
        # Some tokenizers give no token at all for an empty text; a model needs at least one.
        self._filler_id: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self.pad_id

    def count(self, prompt: str) -> int:
        """Tokens of a prompt, without the special token that closes a text."""
        ids = self._backend.encode(prompt).ids if prompt else []
        return len(ids) - (1 if ids and ids[-1] in self._special else 0)

    def tokenise(self, texts: Sequence[str], prompt: str) -> pa.Table:
        """All texts as TOKENISED."""
        return pa.concat_tables([TOKENISED.empty_table(), *self.windows(texts, prompt)]).combine_chunks()

    def windows(self, texts: Sequence[str], prompt: str) -> Iterator[pa.Table]:
        """WINDOW texts after another, as TOKENISED."""
        for start in range(0, len(texts), WINDOW):
            ids, is_cut = self._tokenise(texts[start : start + WINDOW], prompt)
            lengths = np.fromiter(map(len, ids), np.int32, len(ids))
            order = np.argsort(-lengths, kind="stable")
            offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int32)
            flat = np.fromiter(chain.from_iterable(ids[row] for row in order), np.int32, offsets[-1])
            columns = [(order + start).astype(np.int32), pa.ListArray.from_arrays(offsets, flat), is_cut[order]]
            yield pa.table(columns, schema=TOKENISED)

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
