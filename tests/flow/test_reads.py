"""How often a night reads the catalogue, whose files may be terabytes on the far side of a network."""

import sys
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq
import pytest
from flow.worlds import World, vector_world

import jobs.inputs.files
from indexing.store.blobs import hash_stream

NUM_FILES = 5
OPENS = 2
"""To read it and, without reading, to see that it is still the file that was listed."""
opened: list[str] | None = None


def note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if opened is not None and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(note_opened)  # sees each open of this process, the driver; for good, so only while a list is there


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A catalogue of several files."""
    world = vector_world(tmp_path / "world")
    rows, folder = pq.read_table(world.folder / "vectors.parquet"), world.folder / "catalogue"
    folder.mkdir()
    for number in range(NUM_FILES):
        pq.write_table(rows.slice(number * 60, 60), folder / f"{number}.parquet")
    return world.changed(vectors={"path": str(folder)})


def test_the_driver_opens_and_hashes_a_catalogue_file_once_a_night(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks then read row groups, in processes of their own."""
    hashed: Counter[str] = Counter()

    def count(stream: BinaryIO) -> str:
        hashed[str(stream.name)] += 1
        return hash_stream(stream)

    monkeypatch.setattr(jobs.inputs.files, "hash_stream", count)
    monkeypatch.setattr(sys.modules[__name__], "opened", [])
    world.run()
    files = [str(world.folder / "catalogue" / f"{number}.parquet") for number in range(NUM_FILES)]
    assert hashed == dict.fromkeys(files, 1)
    expected = dict.fromkeys(files, OPENS) | {files[0]: OPENS + 1}  # its first vectors say how long vectors are
    assert opened is not None and {path: opened.count(path) for path in files} == expected
