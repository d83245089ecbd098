"""Searching a release with a file of queries."""

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexing.errors import ConfigError
from indexing.search.results import OpenRelease, Results
from jobs.inputs.queries import read_queries
from jobs.progress import Progress

BATCH_QUERIES = 1024
HITS = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("collection", pa.string()),
    ]
)


def search_file(release: OpenRelease, path: str, out: str, k: int, progress: Progress) -> int:
    """Writes the hits of every distinct query, a batch at a time; returns the number of queries.

    The file `out` appears only when it is complete. Raises ConfigError where it cannot be written.
    """
    queries = read_queries(path, None, "--queries")
    unfinished = Path(f"{out}.{uuid.uuid4().hex}.tmp")
    try:
        with progress.stage("search", len(queries), "queries") as bar, pq.ParquetWriter(unfinished, HITS) as writer:
            for start in range(0, len(queries), BATCH_QUERIES):
                batch = queries[start : start + BATCH_QUERIES]
                writer.write_table(hits_table(batch, release.search(batch, k=k)))
                bar.advance(len(batch))
        unfinished.replace(out)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return len(queries)


def hits_table(queries: list[str], results: Results) -> pa.Table:
    num_queries, k = results.scores.shape
    return pa.table(
        {
            "query": pa.array(queries).take(pa.array(np.repeat(np.arange(num_queries), k))),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), num_queries),
            "item_id": results.item_ids.ravel(),
            "score": results.scores.ravel(),
            "collection": results.collections.ravel(),
        },
        schema=HITS,
    )
