"""Items of the catalogue by id, and a sample of the others, read part by part."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out
from indexing.id_keys import id_keys
from indexing.ranks import text_ranks
from jobs.inputs.catalogue import Part, Source
from jobs.inputs.rows import RowRules, check_part
from jobs.run import Run

COLUMNS = ["item_id", "item_type", "title", "creators", "description", "popularity", "text"]


def scan_items(run: Run, source: Source, rules: RowRules, wanted: pa.Array, pool_rows: int) -> pa.Table:
    """`COLUMNS` of the wanted items and of a pool of about `pool_rows`, by id, with `in_pool`; of rows with the same
    id, the first.
    """
    reference, share = ray.put(wanted), min(1.0, pool_rows / source.num_rows)
    tables: dict[int, pa.Table] = {}
    with run.stage("read items", source.num_rows) as bar:
        for part, (table, num_rows) in fan_out(
            lambda part: pick_items.remote(part, rules, reference, share), source.parts, what="read items"
        ):
            tables[part.number] = table
            bar.advance(num_rows)
    items = pa.concat_tables([tables[number] for number in sorted(tables)])
    return items.take(pa.array(np.unique(text_ranks(items["item_id"]), return_index=True)[1]))


@ray.remote
def pick_items(part: Part, rules: RowRules, wanted: pa.Array, share: float) -> tuple[pa.Table, int]:
    """What is picked of one part, and how many rows it has."""
    picked, num_rows = [], 0
    for good, bad in check_part(part, rules):
        in_pool = id_keys(good["item_id"].to_pylist()) < share * 2.0**64
        items = good.select(COLUMNS).append_column("in_pool", pa.array(in_pool))
        picked.append(items.filter(pc.or_(pc.is_in(items["item_id"], value_set=wanted), items["in_pool"])))
        num_rows += good.num_rows + bad.num_rows
    return pa.concat_tables(picked), num_rows
