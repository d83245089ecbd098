"""A CSV of your own becomes a searchable release.

    python examples/own_catalogue.py songs.csv build/own
    nightcrate search build/own/store "songs about rain"

The CSV has the columns id, title, artists (separated by semicolons) and genre. Arguments after the folder override the
configuration: index.M=24.
"""

import subprocess
import sys
from pathlib import Path

CONFIG = """
name: own
store: file://{folder}/store
workspace: file://{folder}/workspace
catalogue:
  path: {source}
  columns: {{item_id: id, creators: {{from: artists, split: ";"}}, genres: {{from: genre, split: ";"}}}}
  collections: {{tracks: {{item_types: [track]}}}}
"""


def main(source: str, target: str, *overrides: str) -> int:
    folder = Path(target).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, source=Path(source).resolve()))
    nightly = [sys.executable, "-m", "jobs", "nightly", "-c", str(folder / "config.yaml"), *overrides]
    return subprocess.run(nightly, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
