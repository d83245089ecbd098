"""What Ray expects of a machine and a container may lack: a home folder it can write to, a short temporary one."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MAX_SOCKET_PATH = 107
"""Bytes that Linux allows for the path of a Unix socket."""
LONGEST_SOCKET = "/ray/session_2026-01-31_02-00-00_123456_4194304/sockets/plasma_store"
"""Below its temporary folder Ray puts sockets into such a path, at most."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def ensure_token() -> None:
    """A token for this process and its children, where Ray could not write one into the home folder."""
    if any(os.environ.get(name) for name in TOKEN_VARIABLES) or has_home():
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def has_home() -> bool:
    """Whether Ray finds its token in the home folder, or can write it there."""
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in /etc/passwd
        return False
    folder = home / ".ray"
    return (folder / "auth_token").exists() or os.access(folder if folder.exists() else home, os.W_OK)


@contextmanager
def short_temp_folder() -> Iterator[str | None]:
    """A temporary folder for Ray where its own choice has too long a path for sockets, else None.

    Raises OSError where no shorter one can be written to.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    longest = MAX_SOCKET_PATH - len(LONGEST_SOCKET)
    if len(os.fsencode(os.path.abspath(chosen))) <= longest:
        yield None
        return
    short = next((folder for folder in SHORT_FOLDERS if os.access(folder, os.W_OK)), None)
    if os.environ.get("RAY_TMPDIR") or short is None:
        name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        raise OSError(
            f"{name}: expected a path of at most {longest} bytes, since that of a Unix socket is limited, got "
            f"{len(os.fsencode(chosen))}: {chosen}; set RAY_TMPDIR to a short folder"
        )
    folder = tempfile.mkdtemp(prefix="nc-", dir=short)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
