"""The encode loop: batches are made on the calling thread and run on worker threads.

On a CPU each worker runs whole batches with torch single-threaded: the workers never wait for each other inside an
operation. With two OpenMP threads per operation instead, a machine that does anything else at the same time loses a
scheduler slice at each of some 200 barriers per batch (measured on 2 busy cores: 4 times slower), and the bits of a
vector would depend on the number of threads. On CUDA one worker launches kernels while the caller tokenises ahead.
"""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from indexing.encoder.backbone import Backbone
from indexing.encoder.batching import Batch, PackedBatch, batches, packed_batches
from indexing.encoder.copy_back import CopyBack, Part
from indexing.encoder.device import is_out_of_memory
from indexing.encoder.head import Head
from indexing.encoder.packed import PackedForward
from indexing.encoder.settings import EncodeStats
from indexing.encoder.tokens import WINDOW, Tokens
from indexing.errors import ConfigError, DataError, first_line
from indexing.vectors import NORM_TOLERANCE

log = logging.getLogger(__name__)

QUEUED_BATCHES = {"cpu": 4, "cuda": 64}

Kind = Literal["document", "query"]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """From text to vector, in three steps."""

    tokens: Tokens
    backbone: Backbone
    head: Head
    include_prompt: bool
    """False: the prompt's tokens are left out of the pooling."""
    packed: PackedForward | None = None
    """On GPUs takes the place of backbone and head, where there is one."""


class Encoder:
    """Texts to unit vectors. Made by `load_encoder`; one call of `encode` at a time."""

    def __init__(
        self, *, query: Tower, document: Tower, prompts: dict[str, str], batch_tokens: int, num_threads: int
    ) -> None:
        self.towers = {"query": query, "document": document}
        backbone = document.backbone
        self.dim, self.max_tokens, self.batch_tokens = document.head.dim, document.tokens.max_tokens, batch_tokens
        self.device, self.dtype = str(backbone.device), str(backbone.dtype).removeprefix("torch.")
        self.prompts, self.num_threads = prompts, num_threads
        self.stats = EncodeStats()
        self._most_tokens = sys.maxsize
        self._device_type = backbone.device.type
        self._on_cpu = self._device_type == "cpu"
        self._num_skipped = {
            kind: 0 if tower.include_prompt else tower.tokens.count(prompts[kind])
            for kind, tower in self.towers.items()
        }

    def encode(
        self,
        texts: Sequence[str],
        kind: Kind = "document",
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """float32 (num_texts, dim), unit norm, in the order of texts; `stats` then describes this call.

        on_batch is called with the number of texts of each finished batch. Raises ConfigError when the device cannot
        hold even a single text, DataError when the model gives vectors that are not finite.
        """
        windows = self.towers[kind].tokens.windows(texts, self.prompts[kind])
        return self._encode(windows, np.zeros((len(texts), self.dim), np.float32), kind, on_batch)

    def encode_tokens(self, tokens: pa.Table) -> np.ndarray:
        """The same as float16, of documents that `load_tokeniser` has made TOKENISED, in the order of their texts."""
        windows = (tokens.slice(start, WINDOW) for start in range(0, len(tokens), WINDOW))
        return self._encode(windows, np.zeros((len(tokens), self.dim), np.float16), "document", None)

    def _encode(
        self, windows: Iterable[pa.Table], vectors: np.ndarray, kind: Kind, on_batch: Callable[[int], None] | None
    ) -> np.ndarray:
        """Fills `vectors`, (num_texts, dim), and returns them."""
        tower = self.towers[kind]
        num_tokens = num_truncated = num_splits = 0
        back = CopyBack(vectors)
        for batch, parts in self._run_all(self._batches(windows, tower), tower, self._num_skipped[kind]):
            num_tokens += int(batch.lengths.sum())
            num_truncated += batch.num_truncated
            num_splits += len(parts) - 1
            back.add(parts)
            if on_batch is not None:
                on_batch(len(batch.rows))
        back.finish()
        _check_norms(vectors)
        self.stats = EncodeStats(
            num_texts=len(vectors), num_tokens=num_tokens, num_truncated=num_truncated, num_oom_splits=num_splits
        )
        return vectors

    def _batches(self, windows: Iterable[pa.Table], tower: Tower) -> Iterable[Batch]:
        if tower.packed is not None:
            return packed_batches(windows, tower.packed.sizes)
        return batches(windows, tower.tokens.pad_id, self.batch_tokens, pin=not self._on_cpu)

    def _run_all(self, batches: Iterable[Batch], tower: Tower, num_skipped: int) -> Iterable[tuple[Batch, list[Part]]]:
        """Run batches on the workers, a bounded number ahead; yields in order."""
        num_workers = self.num_threads if self._on_cpu else 1
        max_queued = num_workers + QUEUED_BATCHES[self._device_type]
        threads = 1 if self._on_cpu else self.num_threads
        pool = ThreadPoolExecutor(num_workers, "encode", initializer=torch.set_num_threads, initargs=(threads,))
        queue: deque[tuple[Batch, Future[list[Part]]]] = deque()
        try:
            for batch in batches:
                queue.append((batch, pool.submit(self._run, batch, tower, num_skipped)))
                if len(queue) > max_queued:
                    first, future = queue.popleft()
                    yield first, future.result()
            while queue:
                first, future = queue.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.num_threads)  # the workers' setting reaches the whole process

    def _run(self, batch: Batch, tower: Tower, num_skipped: int) -> list[Part]:
        """The batch's vectors; in more than one part where memory ran out and the batch was split."""
        parts: list[Part] = []
        todo = [batch]
        while todo:
            part = todo.pop()
            if part.num_tokens > self._most_tokens and len(part.rows) > 1:
                todo += reversed(part.halves())
                continue
            try:
                parts.append((part.rows, _forward(part, tower, num_skipped)))
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part.rows) == 1:
                    size = f"a single text of {int(part.lengths[0])} tokens"
                    raise ConfigError(
                        f"expected memory for {size} on {self.device}, got: {first_line(error)}"
                    ) from error
            # Outside the except block, where the error's traceback no longer references the tensors.
            self._most_tokens = min(self._most_tokens, part.num_tokens // 2)  # so that the next ones are not tried
            log.warning("out of memory on %s: batches are split to %d tokens", self.device, self._most_tokens)
            if not self._on_cpu:
                torch.cuda.empty_cache()
            todo += reversed(part.halves())
        return parts


@torch.inference_mode()
def _forward(batch: Batch, tower: Tower, num_skipped: int) -> torch.Tensor:
    """float32 (num_rows, dim), unit norm, on the device."""
    if tower.packed is not None:
        assert isinstance(batch, PackedBatch)
        return tower.packed(batch, num_skipped)
    hidden = tower.backbone(batch.input_ids, batch.lengths)
    lengths = batch.lengths.to(hidden.device, non_blocking=True)
    vectors: torch.Tensor = tower.head(hidden, lengths, num_skipped)
    return vectors


def _check_norms(vectors: np.ndarray) -> None:
    norms = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))
    if len(wrong):
        raise DataError(
            f"expected vectors of norm 1 from the model, got {norms[wrong[0]]} for text {wrong[0]} "
            f"({len(wrong)} of {len(vectors)} texts); encoder.dtype=float32 may help"
        )
