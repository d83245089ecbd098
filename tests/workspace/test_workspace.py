"""Artifacts: complete once their marker exists."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from indexing.errors import DamagedError
from indexing.store import open_store
from jobs.workspace.artifact import Artifact
from jobs.workspace.blobs import local_copy


@dataclass(frozen=True)
class Counts:
    num_rows: int
    name: str
    share: float


@pytest.fixture
def artifact(store_url: str) -> Artifact[Counts]:
    return Artifact(open_store(store_url), "stage/fingerprint", Counts)


def test_an_artifact_is_complete_once_its_record_is_there(artifact: Artifact[Counts]) -> None:
    artifact.store.put(artifact.key("half.parquet"), b"x")
    assert artifact.read() is None
    artifact.write(Counts(num_rows=3, name="Jóga", share=0.5))
    assert artifact.read() == Counts(num_rows=3, name="Jóga", share=0.5)


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b'{"num_rows": "3", "name": "x", "share": 1}', b'{"num_rows": 3, "name": "x", "other": 1}'],
)
def test_a_record_of_another_version_is_not_done(artifact: Artifact[Counts], content: bytes) -> None:
    artifact.store.put(artifact.key("done.json"), content)
    assert artifact.read() is None


def test_a_damaged_record_is_named(artifact: Artifact[Counts]) -> None:
    artifact.store.put(artifact.key("done.json"), b'{"num_rows": ')
    with pytest.raises(DamagedError, match=r"stage/fingerprint/done\.json is not JSON: .*; delete it and run again"):
        artifact.read()


def test_a_local_copy_holds_the_object_while_it_is_used(artifact: Artifact[Counts]) -> None:
    artifact.store.put("blob", b"content")
    with local_copy(artifact.store, "blob") as path:
        assert Path(path).read_bytes() == b"content"
    assert artifact.store.get("blob") == b"content"
