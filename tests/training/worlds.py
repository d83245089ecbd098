"""A world in which queries share no word with their items, so that only training can find them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from support.tiny_encoder import write_tiny_encoder

from jobs.config.training import NegativesConfig, TrainingConfig
from jobs.inputs.interactions import INTERACTIONS

MOODS = ["calm", "loud", "dark", "bright", "slow", "quick", "warm", "cold"]
SOUNDS = ["piano", "drums", "organ", "flute", "cello", "synth", "harp", "bass"]
PLACES = ["river", "city", "forest", "desert", "ocean", "moon", "garden", "street"]
NUM_ITEMS = 400


def make_items() -> list[dict[str, Any]]:
    """Each item is of one sound; its title says which, and everything else in it is noise."""
    generator = np.random.default_rng(5)
    return [
        {
            "item_id": f"track-{number:03}",
            "item_type": "track",
            "title": f"{SOUNDS[number % 8]} {' '.join(generator.choice(PLACES, 3))}",
            "creators": [f"artist {number % 20}"],
            "description": f"a record of {generator.choice(PLACES)}",
            "popularity": float(number % 10),
        }
        for number in range(NUM_ITEMS)
    ]


def make_log(groups: range, num_items: int = NUM_ITEMS) -> pa.Table:
    """Whoever says a mood means the items of one sound: calm is piano, loud is drums …"""
    rows = [
        {
            "query": f"{MOODS[group % 8]} {word} {PLACES[group // 8]}",
            "query_kind": kind,
            "query_group": f"group {group}",
            "weight": 1.0,
        }
        | {"item_id": f"track-{number:03}"}
        for group in groups
        for kind, word in (("title", "music"), ("description", "mix"))
        for number in range(group % 8, num_items, 8 * (1 + group % 3))
    ]
    return pa.table({name: [row.get(name) for row in rows] for name in INTERACTIONS.names}, schema=INTERACTIONS)


def tiny_model(folder: Path) -> Path:
    texts = [*MOODS, *SOUNDS, *PLACES, "music mix a record of artist", *map(str, range(20))]
    return write_tiny_encoder(folder, texts)


def tiny_training(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "shares": {"clicks": 1.0},
        "steps": 12,
        "batch_pairs": 16,
        "num_negatives": 8,
        "learning_rate": 1e-3,
        "negatives": NegativesConfig(per_query=0),
        "checkpoint_every": 4,
    }
    return TrainingConfig(**{**values, **changes})
