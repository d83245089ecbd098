"""A secret in the environment goes nowhere: no log, no error. What a whole night leaves: flow/test_job_submit.py."""

import logging

import pytest
from support.seaweedfs import SeaweedFS

from jobs.__main__ import main

SECRET = "canary7SecretAccessKey7canary"
TOKEN = "canary7SessionToken7canary"

pytestmark = pytest.mark.case(22)


@pytest.mark.parametrize("command", ["verify", "releases", "prune"])
def test_neither_key_nor_session_token_shows_when_access_is_refused(
    s3_server: SeaweedFS,
    s3_store_url: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server does not know the session token; botocore puts it into its own debug lines."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    assert main([command, s3_store_url, "--debug"]) == 6
    assert "denied" in caplog.text
    assert TOKEN not in caplog.text
    assert s3_server.secret_key not in caplog.text


@pytest.mark.parametrize(
    "url", [f"s3://user:{SECRET}@bucket/store", f"https://user:{SECRET}@host/store", f"s3://{SECRET}@x/y"]
)
def test_a_secret_in_an_address_is_not_repeated(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", url]) == 2
    assert SECRET not in capsys.readouterr().err
