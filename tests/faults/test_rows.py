"""One night over a catalogue with every kind of bad row: they are counted, and the good ones are published."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.conftest import GetNights
from faults.nights import run
from flow.worlds import make_rows

from indexing import open_release

pytestmark = [pytest.mark.case(19), pytest.mark.timeout(600), pytest.mark.faults]


def test_bad_rows_are_counted_by_reason_and_the_rest_is_published(get_nights: GetNights, tmp_path: Path) -> None:
    world = get_nights("encoder").disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    good = make_rows()[:300] + make_rows()[400:]
    huge = {**good[0], "item_id": "huge", "title": "a huge one", "description": "wave storm " * 100_000}
    bad = [
        {**good[1], "item_id": None},
        {**good[2], "item_id": ""},
        {**good[3], "item_id": "no-title", "title": None},
        {**good[4], "item_id": "blank-title", "title": " \t"},
        {**good[5], "item_id": "no-type", "item_type": "vinyl"},
        good[6],
    ]
    table = pa.Table.from_pylist([*good, huge, *bad])
    broken = pa.Table.from_pylist([{**good[7], "item_id": "broken"}], schema=table.schema)
    broken = broken.set_column(table.column_names.index("title"), "title", pa.array([b"caf\xe9"]).view(pa.string()))
    pq.write_table(pa.concat_tables([table, broken]), world.folder / "catalogue" / "all.parquet")
    world = world.changed(catalogue={"max_quarantined": 0.05})

    run(world)

    release = world.releases()[-1]
    assert release.num_items == len(good) + 1
    opened = open_release(world.store_url, cache_dir=tmp_path / "cache")
    assert "huge" in opened.item_ids.to_pylist()
    assert len(set(opened.item_ids.to_pylist())) == release.num_items
    (path,) = Path(tmp_path, "stores/workspace").glob("items/*/quarantine.csv")
    assert len(list(csv.DictReader(path.open(newline="")))) == len([*bad, broken])
