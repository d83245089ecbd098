"""Connecting to Ray: what does not exist is one clear error, soon."""

import socket
import time

import pytest

from cluster.session import ClusterUnavailable, ray_session


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_exist_is_named_immediately(scheme: str) -> None:
    with socket.socket() as listener:  # bound but not listening: nothing else can take the port
        listener.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with (
            pytest.raises(ClusterUnavailable, match=f"no Ray cluster at {address}: .*Connection refused") as caught,
            ray_session(address),
        ):
            pass
    assert time.monotonic() - started < 5
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "127.0.0.1:port"])
def test_an_invalid_address_is_named(address: str) -> None:
    with pytest.raises(ClusterUnavailable, match=f"no Ray cluster at {address}: "), ray_session(address):
        pass


def test_the_address_of_a_submitted_job_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ClusterUnavailable, match=r"no Ray cluster at 127\.0\.0\.1:9: "), ray_session(None):
        pass
