"""A store on this disk, and what makes releases in it."""

from pathlib import Path

import pytest
from support.tiny_release import ReleaseMaker

from indexing.store import Store, open_store


@pytest.fixture
def maker(tmp_path: Path) -> ReleaseMaker:
    return ReleaseMaker(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")
