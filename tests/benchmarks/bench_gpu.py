"""Encoders of three sizes on a GPU, with random weights, against sentence-transformers on the same texts in one run.

    make bench-gpu      or      python tests/benchmarks/bench_gpu.py [--num 200000] [--repeats 3] [--out JSON]

Everybody takes turns; figures are medians. `tokens/s` is of texts that are tokenised beforehand, `with texts` counts
tokenising, on the CPUs of this process. `of peak` is the share of the GPU's bfloat16 peak by its data sheet. Not yet
run: no GPU was at hand.
"""

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_encode import MAX_TOKENS, MODEL, catalogue_texts
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from indexing.encoder import EncoderSettings, load_encoder, load_tokeniser, resolve_model

log = logging.getLogger(__name__)
SIZES = {"MiniLM": (6, 384, 12), "base": (12, 768, 12), "large": (24, 1024, 16)}
"""Layers, hidden size, heads."""
PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""FLOP/s in dense bfloat16, by what the name of a GPU contains."""
PEER_BATCH = 1024


def run(texts: list[str], device: str, sizes: Sequence[str], repeats: int) -> dict[str, Any]:
    """Rates of each size, of ours and of sentence-transformers."""
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    result: dict[str, Any] = {"device": name, "peak_flops": peak, "num_texts": len(texts), "sizes": {}}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = write_model(Path(folder), *SIZES[size])
            result["sizes"][size] = compare(path, texts, device, peak, repeats)
        log.info("%s: %s", size, result["sizes"][size])
    return result


def write_model(folder: Path, num_layers: int, hidden: int, num_heads: int) -> Path:
    """The bundled model's folder with a BERT of that size in place of its own."""
    target = folder / "model"
    shutil.copytree(resolve_model(MODEL, cache_dir=folder), target, ignore=shutil.ignore_patterns("model.safetensors"))
    config = BertConfig.from_pretrained(target)
    config.update(
        {
            "num_hidden_layers": num_layers,
            "hidden_size": hidden,
            "num_attention_heads": num_heads,
            "intermediate_size": 4 * hidden,
        }
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(target)
    pooling = target / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"word_embedding_dimension": hidden}))
    return target


def compare(path: Path, texts: list[str], device: str, peak: float | None, repeats: int) -> dict[str, Any]:
    settings = EncoderSettings(model="", device=device, max_tokens=MAX_TOKENS)
    encoder, tokens = load_encoder(path, settings), load_tokeniser(path, settings)(texts)
    peer = SentenceTransformer(str(path), device=device, model_kwargs={"dtype": torch.bfloat16})
    peer.max_seq_length = MAX_TOKENS

    def peer_encode() -> np.ndarray:
        vectors = peer.encode(texts, batch_size=PEER_BATCH, convert_to_tensor=True, show_progress_bar=False)
        return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()

    runs: dict[str, Callable[[], np.ndarray]] = {
        "tokens alone": lambda: encoder.encode_tokens(tokens),
        "with texts": lambda: encoder.encode(texts),
        "sentence-transformers": peer_encode,
    }
    vectors = {name: act() for name, act in runs.items()}  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, act in runs.items():
            started = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - started)
    num_tokens = encoder.stats.num_tokens
    weights = sum(value.numel() for name, value in peer.named_parameters() if "embeddings" not in name)
    rates = {name: num_tokens / statistics.median(values) for name, values in seconds.items()}
    return {
        "dtype": encoder.dtype,
        "num_tokens": num_tokens,
        "seconds": seconds,
        "tokens_per_s": rates,
        "of_peak": {name: 2 * weights * rate / peak for name, rate in rates.items()} if peak else None,
        "lowest_cosine": float((vectors["with texts"] * vectors["sentence-transformers"]).sum(axis=1).min()),
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"{result['device']}, {result['num_texts']} texts")
    print(f"{'':32}{'tokens/s':>14}{'of peak':>10}")
    for size, found in result["sizes"].items():
        for name, rate in found["tokens_per_s"].items():
            share = f"{found['of_peak'][name]:>10.2f}" if found["of_peak"] else f"{'–':>10}"
            print(f"{size + ', ' + name:32}{rate:>14,.0f}{share}")
        print(f"{'':32}lowest cosine to sentence-transformers {found['lowest_cosine']:.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda", help="cpu only shows that the benchmark works")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("bench-gpu needs an NVIDIA GPU and torch's CUDA build, and found none: nothing was measured")
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    texts = catalogue_texts(options.num)
    result = run(texts, options.device, options.sizes, options.repeats)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print_table(result)


if __name__ == "__main__":
    main()
