"""What a log says of its queries: which items they lead to, and which of these the catalogue lacks."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from indexing.errors import DataError
from jobs.evaluation import judgements
from jobs.evaluation.judgements import Judgements, read_judgements
from jobs.inputs.inputs import Inputs
from jobs.inputs.interactions import INTERACTIONS
from jobs.run import Run

CATALOGUE = ["a", "b", "c", "in the pool alone", "ü"]


def read(monkeypatch: pytest.MonkeyPatch, log: pa.Table) -> Judgements:
    """With the items of CATALOGUE, of which the scan finds the wanted ones and a pool of one."""

    def scan(run: Any, source: Any, rules: Any, wanted: pa.Array, pool_rows: int) -> pa.Table:
        ids = [item for item in CATALOGUE if item in wanted.to_pylist() or item == CATALOGUE[3]]
        texts = {name: [f"{name} of {item}" for item in ids] for name in ("title", "description")}
        return pa.table({"item_id": ids, **texts, "in_pool": [item == CATALOGUE[3] for item in ids]})

    monkeypatch.setattr(judgements, "scan_items", scan)
    return read_judgements(cast(Run, None), cast(Inputs, SimpleNamespace(source=None, rules=None)), log)


def random_log(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 60))
    values: dict[str, list[Any]] = {
        "query": ["jazz", "Jazz", "東京", "🎵"],
        "item_id": ["a", "ü", "b", "elsewhere", "nowhere", " ", None],
        "weight": [0.0, 1.0, 0.5],
        "query_group": ["g", "f"],
        "query_kind": ["title", "", None],
    }
    columns = {name: [of[number] for number in rng.integers(len(of), size=num_rows)] for name, of in values.items()}
    columns |= {name: [None] * num_rows for name in INTERACTIONS.names if name not in values}
    log = pa.table({name: columns[name] for name in INTERACTIONS.names}, schema=INTERACTIONS)
    return pa.concat_tables([log.slice(0, num_rows // 2), log.slice(num_rows // 2)])


@pytest.mark.parametrize("seed", range(40))
def test_judgements_are_those_that_the_rows_make_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = random_log(seed)
    relevant: dict[tuple[str, str, str], set[str]] = {}
    unknown = set()
    for row in log.to_pylist():
        if row["item_id"] is not None and row["weight"] > 0:
            key = row["query_group"], row["query"], row["query_kind"] or ""
            (relevant.setdefault(key, set()) if row["item_id"] in CATALOGUE else unknown).add(row["item_id"])
    if not relevant:
        with pytest.raises(DataError, match=f"expected items of the catalogue, got {len(unknown)} others"):
            read(monkeypatch, log)
        return
    found = read(monkeypatch, log)
    assert list(zip(found.groups, found.texts, found.kinds, strict=True)) == sorted(relevant)
    assert found.relevant == {str(row): relevant[key] for row, key in enumerate(sorted(relevant))}
    assert found.num_unknown == len(unknown)
    logged = set(log["item_id"].to_pylist())
    assert found.items["item_id"].to_pylist() == [item for item in CATALOGUE if item in logged]
    assert found.general["item_id"].to_pylist() == ["in the pool alone"]
