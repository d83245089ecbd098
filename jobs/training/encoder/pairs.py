"""Pairs of a query and an item that answers it: from clicks, from reformulations, from metadata."""

import hashlib
import struct
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.ranks import sorted_numbers

PAIRS = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("weight", pa.float32()),
        pa.field("query_group", pa.string()),
        pa.field("source", pa.string()),
    ]
)
KEYS = ["query_group", "query", "item_id"]
ORDER = [(name, "ascending") for name in ("source", *KEYS)]
MIN_PREFIX = 3
MIN_TYPO = 4
KEY_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {key: row[max(at - 1, 0) : at] + row[at + 1 : at + 2] for row in KEY_ROWS for at, key in enumerate(row)}
"""A key of the QWERTY layout → those next to it in its row."""
Words = tuple[int, int, int, int]


def clicked_pairs(interactions: pa.Table) -> pa.Table:
    """PAIRS of all clicks (INTERACTIONS with an item and a weight above 0), the weights of equal pairs summed."""
    return _sum_pairs(interactions.select([*KEYS, "weight"]).filter(_is_click(interactions)), "clicks")


def reformulated_pairs(interactions: pa.Table, max_gap_s: float = 300.0) -> pa.Table:
    """PAIRS of a query that led to nothing and the items clicked for the next query of its session.

    Neighbouring rows of a session with the same query are one search. The pair takes query_group and weight from the
    click, so that both queries fall on one side of a split. Searches at the same time have no order, and make no pair.
    """
    has_place = pc.and_(pc.is_valid(interactions["session_id"]), pc.is_finite(interactions["timestamp"]))
    rows = interactions.select([*KEYS, "weight", "session_id", "timestamp"]).filter(has_place)
    if not rows.num_rows:
        return PAIRS.empty_table()
    sessions, queries = (sorted_numbers(rows[name])[0] for name in ("session_id", "query"))
    times, clicked = rows["timestamp"].to_numpy(), _is_click(rows).to_numpy()
    order = np.lexsort((queries, times, sessions))
    sessions, times, queries, clicked = (column[order] for column in (sessions, times, queries, clicked))
    is_start = np.append(True, (np.diff(sessions) != 0) | (np.diff(queries) != 0))
    search, starts = np.cumsum(is_start) - 1, np.flatnonzero(is_start)  # search number of each row; first rows
    led_somewhere = np.logical_or.reduceat(clicked, starts)
    gaps_s = times[starts[1:]] - times[starts[1:] - 1]
    is_retry = ~led_somewhere[:-1] & (sessions[starts[1:]] == sessions[starts[:-1]]) & (gaps_s > 0)
    follows_failure = np.append(False, is_retry & (gaps_s <= max_gap_s))
    picked = np.flatnonzero(clicked & follows_failure[search])
    failed = rows["query"].take(pa.array(order[starts[search[picked] - 1]]))
    clicks = rows.select([*KEYS, "weight"]).take(pa.array(order[picked]))
    return _sum_pairs(clicks.set_column(clicks.schema.get_field_index("query"), "query", failed), "reformulations")


def _is_click(interactions: pa.Table) -> pa.ChunkedArray:
    has_item = pc.not_equal(pc.utf8_trim_whitespace(interactions["item_id"]), "")
    return pc.fill_null(pc.and_(has_item, pc.greater(interactions["weight"], 0)), False)


def _sum_pairs(clicks: pa.Table, source: str) -> pa.Table:
    columns, texts = {}, {}
    for name in KEYS:
        columns[name], texts[name] = sorted_numbers(clicks[name])
    clicks = pa.table({**columns, "weight": clicks["weight"]})
    summed = clicks.group_by(KEYS, use_threads=False).aggregate([("weight", "sum")])
    summed = summed.sort_by([(name, "ascending") for name in KEYS])
    named = {name: texts[name].take(summed[name]) for name in KEYS}
    named |= {"weight": summed["weight_sum"], "source": pa.repeat(source, summed.num_rows)}
    return pa.table(named).select(PAIRS.names).cast(PAIRS)


def metadata_pairs(items: pa.Table, sources: Sequence[str], seed: int) -> pa.Table:
    """PAIRS that ask for an item by its own metadata: at most one per item and source, none where the field is missing.

    `items` has the catalogue's columns. An item's queries depend on it and `seed` alone, not on the rows around it.
    """
    columns: dict[str, list[str]] = {name: [] for name in ("query", "item_id", "query_group", "source")}
    fields = (items[name].to_pylist() for name in ("item_id", "title", "creators"))
    for item_id, title, creators in zip(*fields, strict=True):
        title, creator, words = (title or "").strip(), _first_present(creators or []), hash_words(seed, item_id)
        for source in sources:
            if query := METADATA_QUERIES[source](title, creator, words):
                group = f"creator:{creator.lower()}" if source == "creator" else f"item:{item_id}"
                for name, value in zip(columns, (query, item_id, group, source), strict=True):
                    columns[name].append(value)
    weights = np.ones(len(columns["query"]), np.float32)
    return pa.table({**columns, "weight": weights}).select(PAIRS.names).cast(PAIRS).sort_by(ORDER)


def prefix_of(title: str, words: Words) -> str:
    """The title in lower case as typed so far, possibly up to the middle of a word; '' where it is too short."""
    length = len(title.lower())
    return title.lower()[: MIN_PREFIX + words[0] % (length - MIN_PREFIX)] if length > MIN_PREFIX else ""


def typo_of(title: str, words: Words) -> str:
    """The title with one slip: a character dropped, doubled, swapped with the next, or the next key; '' if short."""
    if len(title) < MIN_TYPO:
        return ""
    places = {
        _drop: range(len(title)),
        _double: [at for at, char in enumerate(title) if not char.isspace()],
        _swap: [at for at in range(len(title) - 1) if title[at] != title[at + 1]],
        _press_adjacent: [at for at, char in enumerate(title) if char.lower() in NEIGHBOURS],
    }
    slips = [slip for slip in places if places[slip]]
    slip = slips[words[1] % len(slips)]
    return slip(title, places[slip][words[2] % len(places[slip])], words[3])


def _drop(title: str, at: int, _: int) -> str:
    return title[:at] + title[at + 1 :]


def _double(title: str, at: int, _: int) -> str:
    return title[: at + 1] + title[at:]


def _swap(title: str, at: int, _: int) -> str:
    return title[:at] + title[at + 1] + title[at] + title[at + 2 :]


def _press_adjacent(title: str, at: int, word: int) -> str:
    keys = NEIGHBOURS[title[at].lower()]
    key = keys[word % len(keys)]
    return title[:at] + (key.upper() if title[at].isupper() else key) + title[at + 1 :]


METADATA_QUERIES: dict[str, Callable[[str, str, Words], str]] = {
    "title": lambda title, creator, words: title,
    "title_creator": lambda title, creator, words: f"{title} {creator}" if title and creator else "",
    "creator": lambda title, creator, words: creator,
    "prefix": lambda title, creator, words: prefix_of(title, words),
    "typo": lambda title, creator, words: typo_of(title, words),
}
"""Source → the query from an item's title, first creator and random words; '' for none."""


def _first_present(values: Sequence[str | None]) -> str:
    return next((value.strip() for value in values if value and value.strip()), "")


def hash_words(seed: int, text: str) -> Words:
    """Four random numbers below 2⁶⁴ that only `seed` and `text` decide, on any machine."""
    return struct.unpack("<4Q", hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=32).digest())
