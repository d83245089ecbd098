"""Damages a release in many ways and asks a reader for answers: the part that runs in a process that may crash."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from indexing import open_release
from indexing.errors import NightcrateError
from indexing.release.commit import read_release
from indexing.release.manifest import release_key
from indexing.release.verify import verify_release
from indexing.search.results import OpenRelease
from indexing.store import open_store
from indexing.store.blobs import Blob, blob_key

NUM_QUERIES = 20
VALUES: list[Any] = [None, True, 0, -1, 1, 2**31, 2**70, 1.5, "", "x", "../../x", "0" * 64, [], {}, [[]]]


@dataclass(frozen=True)
class Answers:
    """Best item and metadata of some items' own vectors."""

    found: list[tuple[str, str]]


@dataclass(frozen=True)
class Target:
    """A store with a valid release, which cases alter and restore."""

    url: str
    number: int
    public_key: Path

    @cached_property
    def expected(self) -> tuple[np.ndarray, Answers]:
        with tempfile.TemporaryDirectory() as folder:
            opened = open_release(self.url, self.number, cache_dir=Path(folder))
            labels = opened.shards[0].graph.labels
            labels = labels[np.linspace(0, len(labels) - 1, NUM_QUERIES).astype(np.int64)]
            queries = opened.shards[0].graph.vectors(labels)
            return queries, ask(opened, queries)


def ask(opened: OpenRelease, queries: np.ndarray) -> Answers:
    hits = [hits[0] for hits in opened.search(queries, k=1)]
    return Answers([(hit.item_id, str(hit.metadata)) for hit in hits])


def altered_bytes(data: bytes, dice: random.Random) -> bytes:
    """Another file: bits flipped, bytes removed, inserted, doubled or zeroed, the end cut off or extended."""
    start = dice.randrange(len(data))
    end = min(len(data), start + dice.choice([1, 4, 64, len(data)]))
    flipped = data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1 :]
    choices = [
        flipped,
        flipped,
        data[:start],
        data[:start] + data[end:],
        data[:start] + dice.randbytes(dice.randrange(1, 9)) + data[start:],
        data[:end] + data[start:],
        data[:start] + bytes(end - start) + data[end:],
        data + data[start:],
        data[start:],
        b"",
    ]
    different = [choice for choice in choices if choice != data]
    return dice.choice(different)


def altered_json(data: bytes, dice: random.Random) -> bytes:
    """Canonical JSON again, with one value anywhere replaced, removed, doubled, moved or changed a little."""
    while True:
        document = json.loads(data)
        parent, key = dice.choice(list(places(document)))
        value = parent[key]
        act = dice.choice(["replace", "delete", "nudge", "swap", "copy"])
        if act == "delete":
            del parent[key]
        elif act == "nudge" and isinstance(value, str) and value:
            position = dice.randrange(len(value))
            parent[key] = value[:position] + dice.choice("0af/.\\é") + value[position + 1 :]
        elif act == "nudge" and isinstance(value, int):
            parent[key] = value + dice.choice([-1, 1, 2**20])
        elif act in ("swap", "copy"):
            other, other_key = dice.choice(list(places(document)))
            parent[key] = json.loads(json.dumps(other[other_key]))
            if act == "swap" and isinstance(other, dict | list) and (isinstance(other, dict) or other_key < len(other)):
                other[other_key] = value
        else:
            parent[key] = dice.choice(VALUES)
        try:
            changed = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        except ValueError:  # a value that was moved into itself
            continue
        if changed != data:
            return changed


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything below `value`."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def try_release_file(target: Target, seed: int, signed: bool) -> str:
    """One altered release file: "" when it was refused, or (unsigned) answered as before; else what went wrong."""
    dice, store, key = random.Random(seed), open_store(target.url), release_key(target.number)
    sound = store.get(key)
    alter: Callable[[bytes, random.Random], bytes] = altered_bytes if seed % 2 else altered_json
    queries, expected = target.expected
    keys = [target.public_key] if signed else None
    store.put(key, alter(sound, dice))
    try:
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(open_release(target.url, target.number, cache_dir=Path(folder), trusted_keys=keys), queries)
    except NightcrateError as error:
        return "" if "\n" not in str(error) else f"more than one line: {error}"
    finally:
        store.put(key, sound)
    return "was accepted" if signed else "" if answers == expected else "answered otherwise"


def try_blob(target: Target, seed: int) -> str:
    """One altered blob: "" when readers and verify refuse it and an open reader keeps serving; else what went wrong."""
    dice, store = random.Random(seed), open_store(target.url)
    release = read_release(store, target.number)
    blobs = list(release.blobs().values())
    blob = blobs[seed % len(blobs)]
    queries, expected = target.expected
    with tempfile.TemporaryDirectory() as folder:
        opened = open_release(target.url, target.number, cache_dir=Path(folder, "before"))
        sound = store.get(blob_key(blob.sha256))
        store.put(blob_key(blob.sha256), altered_bytes(sound, dice))
        try:
            problems = [*refusals(target, blob, Path(folder)), *([] if ask(opened, queries) == expected else ["lost"])]
        finally:
            store.put(blob_key(blob.sha256), sound)
    return "; ".join(problems)


def refusals(target: Target, blob: Blob, folder: Path) -> list[str]:
    """What did not refuse the blob, of verify and a new reader."""
    store, problems = open_store(target.url), []
    release = read_release(store, target.number)
    try:
        verify_release(store, release)
        problems.append("verify passed")
    except NightcrateError as error:
        if blob.sha256 not in str(error):
            problems.append(f"verify does not name it: {error}")
    if blob == release.report:
        return problems  # which no reader needs
    try:
        open_release(target.url, target.number, cache_dir=folder / "after").search("some words", k=1)
        problems.append("was used")
    except NightcrateError as error:
        if blob.sha256 not in str(error):
            problems.append(f"the reader does not name it: {error}")
    shutil.rmtree(folder / "after", ignore_errors=True)
    return problems
