"""Loads and searches one graph file as a server would, in a process of its own with bounded memory.

hnswlib 0.8.0 trusts what it loads: of 112 damaged files 17 crashed the process and 3 asked for huge amounts of memory.
`check_loads` lets that happen where it hurts nobody. `python -m indexing.dense.load_check FILE DIM NUM_ITEMS` is the
process; it exits with 0, or prints what is wrong on standard error.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from indexing.dense.hnsw import load_graph
from indexing.dense.params import K
from indexing.errors import DamagedError, ValidationFailed

ROOT = Path(__file__).parents[2]
NUM_QUERIES = 64
EF = 64
SPARE_BYTES = 512 << 20
"""What the process may take beyond twice the file: labels, locks and visited lists of hnswlib, threads' stacks."""
TIMEOUT_S = 900.0


def check_loads(path: Path, dim: int, num_items: int, where: str) -> None:
    """Raises ValidationFailed, naming `where`, unless the graph loads and answers queries within time and memory."""
    command = [sys.executable, "-m", "indexing.dense.load_check", str(path), str(dim), str(num_items)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValidationFailed(f"{where}: its graph was not loaded and searched within {TIMEOUT_S:g} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ValidationFailed(f"{where}: loading and searching its graph crashes the process ({name})")
    if done.returncode:
        last_line = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ValidationFailed(f"{where}: its graph cannot be served: {last_line}")


def main() -> None:
    path, dim, num_items = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    limit_memory(2 * path.stat().st_size + SPARE_BYTES)
    try:
        graph = load_graph(path, dim, num_items)
    except DamagedError as error:
        sys.exit(str(error))
    labels = np.linspace(0, num_items - 1, min(NUM_QUERIES, num_items)).astype(np.int64)
    found, _ = graph.search(graph.vectors(labels), min(K, num_items), EF, num_threads=1)
    if found.min() < 0 or found.max() >= num_items:
        sys.exit(f"expected labels from 0 to {num_items - 1}, a search found {found.min()} to {found.max()}")


def limit_memory(num_bytes: int) -> None:
    """Lets this process take `num_bytes` more address space than it has now; only Linux enforces such a limit."""
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + num_bytes, taken + num_bytes))


if __name__ == "__main__":
    main()
