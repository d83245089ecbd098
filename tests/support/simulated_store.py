"""Object storage in a simulated world, and those who watch it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from support.simulation import World

from indexing.errors import DamagedError, ObjectNotFound, StoreUnavailable
from indexing.store import ObjectInfo, Store
from indexing.store.base import replacing_file


class Observer:
    """Sees every write and deletion at the instant when the store carries it out."""

    def before_write(self, key: str, data: bytes) -> None: ...

    def before_delete(self, key: str, was_checked: bool) -> None:
        """`was_checked`: the process had just found that it holds its lease when it sent the request."""


class SimulatedStore(Store):
    """What S3 does, for one process: strong consistency, listings by the page, writes repeated when no answer came."""

    def __init__(self, world: World, objects: dict[str, tuple[bytes, float]], observer: Observer) -> None:
        self.url = "sim://store"
        self.world, self.objects, self.observer = world, objects, observer

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        self._send()
        data, _ = self._look(key)
        if max_bytes is not None and len(data) > max_bytes:
            raise DamagedError(f"expected at most {max_bytes} bytes in {key}, got {len(data)}")
        return data

    def get_range(self, key: str, start: int, num_bytes: int, etag: str | None = None) -> bytes:
        return self.get(key)[start : start + num_bytes]

    def download(self, key: str, path: Path) -> None:
        data = self.get(key)
        with replacing_file(path) as file:
            file.write(data)

    def put(self, key: str, data: bytes) -> None:
        self._write(lambda: self._store(key, data))

    def upload(self, key: str, path: Path, sha256: str) -> bool:
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256
        self._write(lambda: self._store(key, data))
        return True

    def create(self, key: str, data: bytes) -> bool:
        while True:
            self._send()
            if key not in self.objects:
                self._store(key, data)
                self._answer()
                return True
            with suppress(ObjectNotFound):  # deleted since
                return self.get(key) == data

    def head(self, key: str) -> ObjectInfo | None:
        self._send()
        return self._info(key) if key in self.objects else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found: list[ObjectInfo] = []
        while True:
            self._send()
            last = found[-1].key if found else ""
            keys = sorted(key for key in self.objects if key.startswith(prefix) and key > last)
            found += [self._info(key) for key in keys[:4]]
            if len(keys) <= 4:
                return iter(found)

    def delete(self, key: str) -> None:
        was_checked = self.world.process.checked_s == self.world.now_s
        self._write(lambda: self._remove(key, was_checked))

    def now(self) -> float:
        self._send()
        return float(int(self.world.now_s))

    def _send(self) -> None:
        self.world.moment()
        if self.world.happens(0.001):
            raise StoreUnavailable("the simulated store is overloaded")

    def _answer(self) -> None:
        if self.world.happens(0.2):
            self.world.moment()

    def _write(self, act: Callable[[], None]) -> None:
        """A client that gets no answer sends the request again."""
        self._send()
        act()
        self._answer()
        if self.world.happens(0.02):
            self._send()
            act()

    def _look(self, key: str) -> tuple[bytes, float]:
        if key not in self.objects:
            raise ObjectNotFound(f"expected {key} to exist, found nothing there")
        return self.objects[key]

    def _store(self, key: str, data: bytes) -> None:
        self.observer.before_write(key, data)
        self.objects[key] = (data, self.world.now_s)

    def _remove(self, key: str, was_checked: bool) -> None:
        if key in self.objects:
            self.observer.before_delete(key, was_checked)
            del self.objects[key]

    def _info(self, key: str) -> ObjectInfo:
        data, modified = self.objects[key]
        sha256 = hashlib.sha256(data).hexdigest()
        return ObjectInfo(key=key, size_bytes=len(data), modified=float(int(modified)), etag=sha256, sha256=sha256)
