"""Which of two encoders ranks better on your own judgements, over the full catalogue.

    python examples/compare_encoders.py config.yaml beir/ models/old models/new

The folder has the BEIR layout: corpus.jsonl, queries.jsonl and qrels/test.tsv (query-id, corpus-id, score).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(config: str, beir: str, *models: str) -> None:
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.json")
            evaluate = [sys.executable, "-m", "jobs", "evaluate", "-c", config, "--beir", beir, "--out", str(report)]
            subprocess.run([*evaluate, f"encoder.model={model}"], check=True, stdout=subprocess.DEVNULL)
            metrics = json.loads(report.read_text())["rankers"]["new"]["exact"]
        print(model, *(f"{name} {value:.3f}" for name, value in sorted(metrics.items())))


if __name__ == "__main__":
    main(*sys.argv[1:])
