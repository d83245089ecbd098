"""A CSV of your own becomes a searchable release.

    python examples/own_catalogue.py songs.csv build/own
    nightcrate search build/own/store "songs about rain"

The CSV has the columns id, title, artists (separated by semicolons) and genre. Arguments after the folder override the
configuration: index.M=24.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

CONFIG = """
name: own
store: file://{folder}/store
workspace: file://{folder}/workspace
catalogue:
  path: {folder}/catalogue.parquet
  collections: {{tracks: {{item_types: [track]}}}}
"""


def main(source: str, target: str, *overrides: str) -> int:
    folder = Path(target).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    strings = csv.ConvertOptions(column_types=dict.fromkeys(("id", "title", "artists", "genre"), pa.string()))
    rows = csv.read_csv(source, convert_options=strings)
    catalogue = {
        "item_id": rows["id"],
        "item_type": ["track"] * rows.num_rows,
        "title": rows["title"],
        "creators": pc.split_pattern(rows["artists"], ";"),
        "genres": pc.split_pattern(rows["genre"], ";"),
    }
    pq.write_table(pa.table(catalogue), folder / "catalogue.parquet")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    nightly = [sys.executable, "-m", "jobs", "nightly", "-c", str(folder / "config.yaml"), *overrides]
    return subprocess.run(nightly, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
