"""Ray in a container: a user without a home, a temporary folder whose path is too long for sockets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flow.worlds import ROOT

from cluster.bare_machine import LONGEST_SOCKET, MAX_SOCKET_PATH, ensure_token, short_temp_folder

LONG = "x" * 90
RUN_ONE_TASK = """
import ray
from cluster.session import ray_session
with ray_session(None):
    print(ray.get(ray.remote(lambda: "done").remote()))
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "no home"))


def test_ray_starts_for_a_user_without_a_home_and_with_a_long_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / LONG
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ONE_TASK], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
    assert not (tmp_path / "no home").exists()


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_is_given_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "given")
    ensure_token()
    assert [os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")].count("given") == 1
    assert sum(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) == 1


def test_a_token_is_made_only_for_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no home").mkdir()
    ensure_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setattr("pathlib.Path.home", no_home)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_short_temporary_folder_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = MAX_SOCKET_PATH - len(LONGEST_SOCKET)
    for path in ("/tmp", f"/{'x' * (longest - 1)}"):
        monkeypatch.setenv("TMPDIR", path)
        with short_temp_folder() as folder:
            assert folder is None


def test_a_long_temporary_folder_gives_way_to_a_short_one_for_the_time_of_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", f"/tmp/{LONG}")
    with short_temp_folder() as folder:
        assert folder is not None and len(folder + LONGEST_SOCKET) <= MAX_SOCKET_PATH
        Path(folder, "ray").mkdir()
    assert not Path(folder).exists()


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_where_there_is_no_short_folder_the_error_names_the_variable_and_the_limit(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"/tmp/{LONG}")
    monkeypatch.setattr("cluster.bare_machine.SHORT_FOLDERS", ("/nowhere",))
    message = f"^{variable}: expected a path of at most 39 bytes, .* got 95: .*set RAY_TMPDIR"
    with pytest.raises(OSError, match=message), short_temp_folder():
        pass
