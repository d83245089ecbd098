"""A store that counts its requests and their bytes, in any process, and takes as long as a distant one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from indexing.store import ObjectInfo, Store
from jobs.progress import Bar, Progress

Counts = dict[str, int]
"""requests, read (bytes), written (bytes)."""
PART_BYTES = 16 << 20
"""Of an upload; each part is a request."""


@dataclass(frozen=True)
class RequestLog:
    """One line for each request, in a file for each process."""

    folder: Path

    def note(self, num_requests: int, read: int = 0, written: int = 0) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / str(os.getpid()), "a") as file:
            file.write(f"{num_requests} {read} {written}\n")

    def total(self) -> Counts:
        sums = [0, 0, 0]
        for path in self.folder.glob("*"):
            for line in path.read_text().splitlines():
                sums = [total + int(word) for total, word in zip(sums, line.split(), strict=True)]
        return dict(zip(("requests", "read", "written"), sums, strict=True))


class CountingStore(Store):
    """Not a LocalStore, so nothing takes the shortcuts that a folder allows."""

    def __init__(self, inner: Store, log: RequestLog, latency_s: float) -> None:
        self.url, self.inner, self.log, self.latency_s = inner.url, inner, log, latency_s

    def _note(self, read: int = 0, written: int = 0, num_requests: int = 1) -> None:
        time.sleep(self.latency_s * num_requests)
        self.log.note(num_requests, read, written)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        data = self.inner.get(key, max_bytes)
        self._note(read=len(data))
        return data

    def get_range(self, key: str, start: int, num_bytes: int, etag: str | None = None) -> bytes:
        data = self.inner.get_range(key, start, num_bytes)
        self._note(read=len(data))
        return data

    def download(self, key: str, path: Path) -> None:
        self.inner.download(key, path)
        self._note(read=path.stat().st_size, num_requests=max(1, -(-path.stat().st_size // PART_BYTES)))

    def put(self, key: str, data: bytes) -> None:
        self._note(written=len(data))
        self.inner.put(key, data)

    def upload(self, key: str, path: Path, sha256: str) -> bool:
        num_parts = -(-path.stat().st_size // PART_BYTES)
        self._note(written=path.stat().st_size, num_requests=num_parts + 2 if num_parts > 1 else 1)
        self.inner.upload(key, path, sha256)
        return True

    def create(self, key: str, data: bytes) -> bool:
        self._note(written=len(data))
        return self.inner.create(key, data)

    def head(self, key: str) -> ObjectInfo | None:
        self._note()
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = list(self.inner.list(prefix))
        self._note(num_requests=max(1, -(-len(found) // 1000)))
        return iter(found)

    def delete(self, key: str) -> None:
        self._note()
        self.inner.delete(key)

    def now(self) -> float:
        return self.inner.now()


class CountingProgress(Progress):
    """Keeps what each stage has requested in `by_stage`; `rest` is what was requested between stages."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__(Console(quiet=True))
        self.log, self.by_stage = log, dict[str, Counts]()

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "rows") -> Iterator[Bar]:
        before = self.log.total()
        with super().stage(name, total, unit) as bar:
            yield bar
        after, so_far = self.log.total(), self.by_stage.get(name, {})
        self.by_stage[name] = {kind: so_far.get(kind, 0) + after[kind] - before[kind] for kind in after}
