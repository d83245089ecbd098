"""Vectors that you already have become a release: no encoder, no torch.

    python examples/own_vectors.py vectors.npy ids.parquet build/vectors

vectors.npy is float (num_items, dim); ids.parquet names its rows, in order, in the column item_id.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from indexing import open_release

CONFIG = """
name: vectors
store: file://{folder}/store
workspace: file://{folder}/workspace
catalogue: {{collections: {{tracks: {{item_types: [track]}}}}}}
vectors: {{path: {vectors}, ids: {ids}}}
"""


def main(vectors: str, ids: str, target: str, *overrides: str) -> None:
    folder = Path(target).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder, vectors=Path(vectors).resolve(), ids=Path(ids).resolve()))
    subprocess.run([sys.executable, "-m", "jobs", "nightly", "-c", str(config), *overrides], check=True)
    release = open_release(f"file://{folder}/store")
    for hit in release.search(np.load(vectors)[:1], k=3)[0]:  # what is close to the first item: itself, then others
        print(f"{hit.score:.3f} {hit.item_id}")


if __name__ == "__main__":
    main(*sys.argv[1:])
