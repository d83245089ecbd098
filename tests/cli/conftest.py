"""A store with releases, for the tests of commands that need no Ray."""

from pathlib import Path

import pytest
from flow.worlds import SYLLABLES, publish_without_ray
from support.tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="module")
def store_url_(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("published")
    model = write_tiny_encoder(folder / "model", [" ".join(SYLLABLES)])
    return publish_without_ray(folder, model)


@pytest.fixture
def published(store_url_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with two releases of 40 tracks and 12 shows whose ids are their texts. Only to be read."""
    monkeypatch.setenv("NIGHTCRATE_CACHE", str(tmp_path / "cache"))
    return store_url_
