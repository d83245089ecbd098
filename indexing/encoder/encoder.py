"""The encode loop."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from indexing.encoder.batching import Batch, TokenCounts, make_batches
from indexing.encoder.device import default_batch_tokens
from indexing.encoder.head import Head
from indexing.encoder.settings import EncodeStats
from indexing.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Encoder:
    """Texts to unit vectors. Made by `load_encoder`; not safe to share between threads."""

    def __init__(
        self,
        *,
        model: "PreTrainedModel",
        head: Head,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: dict[str, str],
        include_prompt: bool,
        max_tokens: int,
        batch_tokens: int | None,
    ) -> None:
        self.model, self.head = model, head
        self.dim, self.max_tokens = head.dim, max_tokens
        self.device, self.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
        self.prompts = prompts
        self.batch_tokens = batch_tokens or default_batch_tokens(model.device)
        self.stats = EncodeStats()
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._filler_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self._pad_id
        self._skipped = {kind: 0 if include_prompt else self._prompt_tokens(tokenizer, kind) for kind in prompts}

    def _prompt_tokens(self, tokenizer: "PreTrainedTokenizerBase", kind: str) -> int:
        """Tokens of the prompt that pooling leaves out: without a closing special token."""
        ids = self._tokenizer.encode(self.prompts[kind]).ids if self.prompts[kind] else []
        return len(ids) - 1 if ids and ids[-1] in tokenizer.all_special_ids else len(ids)

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        kind: Literal["document", "query"] = "document",
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """float32 (num_texts, dim), unit norm, in the order of texts; figures of the call are in `stats` afterwards.

        on_batch is told the number of texts of each finished batch. Raises ConfigError when the device cannot hold
        even a single text, DataError when the model gives vectors that are not finite.
        """
        counts, num_splits = TokenCounts(), 0
        vectors = np.empty((len(texts), self.dim), np.float32)
        batches = make_batches(
            self._tokenizer,
            texts,
            prompt=self.prompts[kind],
            batch_tokens=self.batch_tokens,
            pad_id=self._pad_id,
            filler_id=self._filler_id,
            pin=False,
            counts=counts,
        )
        for batch in batches:
            todo = [batch]
            while todo:
                part = todo.pop()
                vectors[part.rows] = self._forward(part, self._skipped[kind]).cpu().numpy()
            if on_batch is not None:
                on_batch(len(batch.rows))
        self.stats = EncodeStats(
            num_texts=len(texts),
            num_tokens=counts.num_tokens,
            num_truncated=counts.num_truncated,
            num_oom_splits=num_splits,
        )
        return vectors

    def _forward(self, batch: Batch, num_skipped: int) -> torch.Tensor:
        input_ids = batch.input_ids.to(self.model.device, non_blocking=True)
        lengths = batch.lengths.to(self.model.device, non_blocking=True)
        is_padded = int(batch.lengths[-1]) < input_ids.shape[1]
        mask = None
        if is_padded:
            mask = (torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]).long()
        hidden = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self.head(hidden, lengths, num_skipped)
