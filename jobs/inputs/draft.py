"""A configuration for a catalogue that has none yet: which column is what is guessed by common names."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from indexing.catalogue.columns import convert, converts, is_number, is_text, plain_type
from indexing.catalogue.contract import CONTRACT, is_blank
from indexing.errors import DataError
from indexing.store import open_store
from jobs.config.apart import require_apart
from jobs.config.paths import SCHEME
from jobs.config.schema import CatalogueConfig, CollectionConfig, Config
from jobs.inputs.batches import read_batches
from jobs.inputs.catalogue import ScannedFile, scan_files, scan_source
from jobs.inputs.columns import INTERNAL, Columns, arrange
from jobs.inputs.files import folder_columns
from jobs.inputs.rows import check_part, row_rules
from jobs.inputs.text_files import REASON

NAMES = {
    "item_id": "itemid id trackid songid episodeid uri trackuri guid uuid isrc showid albumid artistid",
    "title": "title name tracktitle trackname songtitle songname episodetitle episodename song",
    "creators": "creators creator artists artist artistnames artistname authors author hosts host performer publisher",
    "parent_title": "parenttitle album albumtitle albumname show showtitle showname podcast podcastname series release",
    "description": "description desc summary about notes text",
    "genres": "genres genre trackgenre tags categories category styles style",
    "language": "language lang locale",
    "popularity": "popularity plays playcount streams streamcount views listens",
    "item_type": "itemtype type kind mediatype contenttype",
}
"""The contract's column → common names of it, without case and punctuation, the likeliest first."""
SEPARATORS = {"creators": ";|", "genres": ";|,"}
"""What separates the texts of a list. A comma is part of too many artists' names."""
SAMPLE_ROWS, SHOWN_ROWS, MAX_TYPES = 1_000, 3, 20
MIN_DISTINCT = 0.9
"""Share of the sampled rows whose ids must differ."""
MORE_OF_COLUMN = {"item_id": " and distinct values", "title": ""}
"""What is expected of a required column in addition to its name."""
Rule = str | dict[str, str]


@dataclass(frozen=True)
class Draft:
    yaml: str
    columns: dict[str, Rule]
    """The contract's column → yours."""
    carried: list[str]
    """Columns that come back with each hit."""
    num_rows: int
    texts: list[str]
    """Some rows as the encoder reads them."""


def draft_config(path: str, out: Path) -> Draft:
    """A draft for the catalogue at `path`, to be written to `out`. Reads all of a CSV or JSON file, once.

    Raises ConfigError where there is no catalogue, DataError where no column is an id or a title, or no row is good.
    """
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        files = scan_files(make_config(path, folder, {}, {"items": ["item"]}), open_store(folder))
        scans = [scan for _, _, of_file in files for scan in of_file]
        sample = read_sample(scans, path)
        columns, collections = guess_columns(sample, path), {"items": ["item"]}
        if source := columns.get("item_type"):
            if found := name_collections(read_types(scans, str(source)), str(source)):
                collections = found
            else:
                del columns["item_type"]
        config = make_config(path, folder, changed_names(columns), collections)
        texts, num_rows = read_texts(config)
    build = Path("build", catalogue_name(path)).absolute()
    require_apart(replace(config, store=f"file://{build}/store", workspace=f"file://{build}/workspace"))
    taken = {rule if isinstance(rule, str) else rule["from"] for rule in columns.values()}
    carried = [name for name in sample.column_names if name.strip() and name not in taken]
    return Draft(write_yaml(path, out, config.catalogue), columns, carried, num_rows, texts)


def make_config(
    path: str, folder: str, columns: Mapping[str, Rule], collections: Mapping[str, Sequence[str]]
) -> Config:
    """With a workspace in `folder`."""
    catalogue = CatalogueConfig(
        path=path if SCHEME.match(path) else os.path.abspath(path),
        columns=dict(columns),  # type: ignore[arg-type]  # pydantic checks the names
        collections={name: CollectionConfig(item_types=list(types)) for name, types in collections.items()},
    )
    return Config(
        name=catalogue_name(path), store=f"{folder}/store", workspace=f"{folder}/workspace", catalogue=catalogue
    )


def catalogue_name(path: str) -> str:
    """`tracks` of `data/tracks.csv.gz`."""
    return re.sub(r"[^\w-]+", "-", path.rstrip("/").rpartition("/")[2].partition(".")[0]).strip("-") or "catalogue"


def read_sample(scans: Sequence[ScannedFile], path: str) -> pa.Table:
    """The first rows of the first file that has any, as they came."""
    num_bad, reason = 0, ""
    for scan in scans:
        with scan.store.open(scan.info.key) as file:
            for table in read_batches(file):
                if REASON in table.column_names:
                    bad = table.filter(pc.is_valid(table[REASON]))
                    num_bad, reason = num_bad + bad.num_rows, reason or "".join(bad[REASON][:1].to_pylist())
                    table = table.filter(pc.is_null(table[REASON]))
                if table.num_rows:
                    table = arrange(
                        table.slice(0, SAMPLE_ROWS), Columns(constants=folder_columns(scan.name)), scan.source
                    )
                    return table.select([name for name in table.column_names if name not in INTERNAL])
    raise DataError(
        f"{path}: expected rows, got " + (f"{num_bad} bad ones; the first: {reason}" if num_bad else "none")
    )


def guess_columns(sample: pa.Table, path: str) -> dict[str, Rule]:
    """The contract's column → the one of `sample` that has a common name of it, and values that fit."""
    by_name = {re.sub(r"[\W_]+", "", name.lower()): name for name in reversed(sample.column_names)}
    columns: dict[str, Rule] = {}
    for target, names in NAMES.items():
        fitting = (by_name[name] for name in names.split() if name in by_name)
        source = next((name for name in fitting if name not in columns.values() and fits(sample[name], target)), None)
        if source is not None:
            columns[target] = source
    for target in ("item_id", "title"):
        if target not in columns:
            likely = ", ".join(NAMES[target].split()[:4])
            raise DataError(
                f"{path}: expected a column for {target}, with a name such as {likely}{MORE_OF_COLUMN[target]}, got "
                f"{', '.join(sample.column_names)}; write a configuration with catalogue.columns, as configs/local.yaml"
            )
    for target, separators in SEPARATORS.items():
        source = columns.get(target)
        separator = find_separator(sample[source], separators) if isinstance(source, str) else None
        if isinstance(source, str) and separator:
            columns[target] = {"from": source, "split": separator}
    return columns


def fits(column: pa.ChunkedArray, target: str) -> bool:
    """Whether the values convert, and, of an id, most are distinct. A text that is not UTF-8 costs its row alone."""
    expected = CONTRACT.field(target).type
    if not converts(column.type, expected):
        return False
    values, unfit = convert(column, expected)
    is_repeated = target == "item_id" and len(pc.unique(values)) < MIN_DISTINCT * len(values)
    return not (is_repeated or (is_number(expected) and pc.any(unfit).as_py()))


def find_separator(column: pa.ChunkedArray, separators: str) -> str | None:
    if not is_text(plain_type(column.type)):
        return None
    texts, _ = convert(column, pa.string())
    return next((one for one in separators if pc.any(pc.match_substring(texts, one)).as_py()), None)


def read_types(scans: Sequence[ScannedFile], source: str) -> list[str]:
    """The item types of all rows, sorted."""
    found: set[str] = set()
    for scan in scans:
        if source in scan.schema.names:
            found.update(*read_column(scan, source))
        elif value := folder_columns(scan.name).get(source):
            found.add(value)
    return sorted(found)


def read_column(scan: ScannedFile, name: str) -> Iterator[list[str]]:
    """The distinct texts of a column that are not blank, batch by batch."""
    with scan.store.open(scan.info.key) as file:
        for batch in read_batches(file, columns=[name]):
            texts, _ = convert(batch[name], pa.string())
            yield pc.unique(texts.filter(pc.invert(is_blank(texts)))).to_pylist()


def name_collections(item_types: Sequence[str], source: str) -> dict[str, list[str]]:
    """One for each item type; none where there are so many that the column hardly means that."""
    if len(item_types) > MAX_TYPES:
        return {"items": list(item_types)} if source == "item_type" else {}
    collections: dict[str, list[str]] = {}
    for kind in item_types:
        collections.setdefault(kind if kind.endswith("s") else f"{kind}s", []).append(kind)
    return collections


def changed_names(columns: Mapping[str, Rule]) -> dict[str, Rule]:
    """What has to be said: columns that are not called as in the contract already."""
    return {name: rule for name, rule in columns.items() if rule != name}


def read_texts(config: Config) -> tuple[list[str], int]:
    """(the first good rows as the encoder reads them, the number of all rows)."""
    source = scan_source(config, open_store(config.workspace))
    rules = row_rules(config, source)
    reason = ""
    for part in source.parts:
        for good, bad in check_part(part, rules):
            if good.num_rows:
                return good["text"][:SHOWN_ROWS].to_pylist(), source.num_rows
            reason = reason or bad["reason"][0].as_py()
    raise DataError(
        f"{config.catalogue.path}: expected a good row, got {source.num_rows} bad ones; the first: {reason}"
    )


def write_yaml(path: str, out: Path, catalogue: CatalogueConfig) -> str:
    name = catalogue_name(path)
    build = os.path.relpath(Path("build", name), out.parent)
    build = build if build.startswith("..") else f"./{build}"
    given = path if SCHEME.match(path) or os.path.isabs(path) else os.path.relpath(path, out.parent)
    lines = [
        "# Written by nightcrate init. Look first, then run:",
        f"#   nightcrate plan    -c {out}",
        f"#   nightcrate nightly -c {out}",
        f"name: {scalar(name)}",
        f"store: {scalar(f'file://{build}/store')} # releases: what search opens",
        f"workspace: {scalar(f'file://{build}/workspace')} # vectors and finished work: what the next night reuses",
        "catalogue:",
        f"  path: {scalar(given)}",
    ]
    if catalogue.columns:
        lines.append("  columns: # ours: yours; other columns are returned with each hit")
    for column, rule in catalogue.columns.items():
        pairs = rule if isinstance(rule, str) else ", ".join(f"{key}: {scalar(value)}" for key, value in rule.items())
        lines.append(f"    {column}: {scalar(pairs) if isinstance(rule, str) else f'{{{pairs}}}'}")
    lines.append("  collections: # item types that are searched together")
    for collection, section in catalogue.collections.items():
        types = ", ".join(map(scalar, section.item_types))
        lines.append(f"    {scalar(collection)}: {{item_types: [{types}]}}")
    return "\n".join(lines) + "\n"


def scalar(text: str) -> str:
    """A text in YAML: as it is where that means the text, else in quotes."""
    is_plain = re.fullmatch(r"[\w./][\w ./:-]*", text) and yaml.safe_load(text) == text
    return text if is_plain else json.dumps(text, ensure_ascii=False)
