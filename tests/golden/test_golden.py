"""Releases of every format version are readable forever: opened, verified, searched with the answers of their day."""

import json
from pathlib import Path

import pytest

from indexing import open_release
from indexing.release.commit import read_release
from indexing.release.manifest import FORMAT_VERSION, release_key, release_to_bytes
from indexing.release.verify import verify_release
from indexing.store import open_store

VERSIONS = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())


def test_there_is_a_golden_release_of_each_format_version() -> None:
    assert [path.name for path in VERSIONS] == [f"v{number}" for number in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_golden_release_answers_as_on_its_first_day(folder: Path, tmp_path: Path) -> None:
    answers = json.loads((folder / "answers.json").read_text())
    release = open_release(str(folder / "store"), cache_dir=tmp_path)
    for query, expected in answers.items():
        hits = release.search(query, k=len(expected))
        assert [[hit.item_id, hit.collection] for hit in hits] == [row[:2] for row in expected]
        assert [hit.score for hit in hits] == pytest.approx([row[2] for row in expected], abs=2e-3)
        assert all(hit.metadata["title"] == f"title of {hit.item_id}" for hit in hits)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_golden_release_is_valid_and_its_file_canonical(folder: Path) -> None:
    store = open_store(str(folder / "store"))
    release = read_release(store, 1)
    assert verify_release(store, release).num_items == release.num_items
    assert release_to_bytes(release) == store.get(release_key(1))
