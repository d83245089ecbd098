"""Results from the device to the host, many batches in one copy, while the device computes the next ones."""

from typing import TypeAlias

import numpy as np
import torch

# Rows of results left on a GPU until they are copied back together: no synchronisation per batch.
ROWS_ON_DEVICE = 16_384

Part: TypeAlias = tuple[np.ndarray, torch.Tensor]
"""Rows (positions in the caller's list) and their vectors, float32 on the device."""


class CopyBack:
    """Puts parts into `vectors`, (num_texts, dim), in its number format. From a GPU they come through pinned memory, on
    a stream of their own.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self._waiting: list[Part] = []
        self._on_the_way: list[tuple[np.ndarray, torch.Tensor, torch.cuda.Event]] = []
        self._stream: torch.cuda.Stream | None = None

    def add(self, parts: list[Part]) -> None:
        self._waiting += parts
        on_cpu = not self._waiting or not self._waiting[0][1].is_cuda
        if on_cpu or sum(len(rows) for rows, _ in self._waiting) >= ROWS_ON_DEVICE:
            self._send(on_cpu)

    def finish(self) -> None:
        """Returns when all is in `vectors`."""
        self._send(not self._waiting or not self._waiting[0][1].is_cuda)
        self._receive()

    def _send(self, on_cpu: bool) -> None:
        if not self._waiting:
            return
        rows = np.concatenate([rows for rows, _ in self._waiting])
        found = torch.cat([part for _, part in self._waiting])
        self._waiting.clear()
        if on_cpu:
            self._vectors[rows] = found.numpy()
            return
        self._receive()
        found = found.to(torch.float16 if self._vectors.dtype == np.float16 else torch.float32)
        self._stream = self._stream or torch.cuda.Stream(found.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(found.device))
        with torch.cuda.stream(self._stream):
            held = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            held.copy_(found, non_blocking=True)
            found.record_stream(self._stream)
            self._on_the_way.append((rows, held, self._stream.record_event()))

    def _receive(self) -> None:
        for rows, held, event in self._on_the_way:
            event.synchronize()
            self._vectors[rows] = held.numpy()
        self._on_the_way.clear()
