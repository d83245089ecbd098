"""Files of queries: read and sampled."""

import hashlib
import logging
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.columns import convert, converts
from indexing.errors import DataError
from indexing.search.queries import MAX_QUERY_CHARACTERS
from indexing.store import S3Settings
from jobs.config.schema import Config
from jobs.inputs.batches import read_batches
from jobs.inputs.files import list_files, open_listed, parquet_errors, read_footer

logger = logging.getLogger(__name__)


def read_queries(path: str, s3: S3Settings | None, setting: str) -> list[str]:
    """The distinct values of the column `query` that can be searched for, sorted: texts, not blank and not too long.

    A warning counts those that are not UTF-8 or too long. Raises DataError without such a column.
    """
    store, files = list_files(path, s3, setting)
    texts: set[str] = set()
    for info in files:
        source = store.describe(info.key)
        with open_listed(store, info) as file:
            _, schema = read_footer(file, source)
            if "query" not in schema.names or not converts(schema.field("query").type, pa.string()):
                raise DataError(f"{source}: expected a column query of texts, got {', '.join(schema.names)}")
            left_out = Counter[str]()
            with parquet_errors(source):
                for batch in read_batches(file, columns=["query"]):
                    column, undecodable = convert(batch["query"], pa.string())
                    is_long = pc.fill_null(pc.greater(pc.utf8_length(column), MAX_QUERY_CHARACTERS), False)
                    left_out["not UTF-8"] += pc.sum(undecodable).as_py() or 0
                    left_out[f"longer than {MAX_QUERY_CHARACTERS:,} characters"] += pc.sum(is_long).as_py() or 0
                    found = pc.unique(column.filter(pc.invert(is_long))).to_pylist()
                    texts.update(text for text in found if text and text.strip())
        for reason, count in left_out.items():
            if count:
                logger.warning("%s: %d queries that are %s are left out", source, count, reason)
    if not texts:
        raise DataError(f"{setting}: expected queries in {path}, got none that can be searched for")
    return sorted(texts)


def sample_queries(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, always the same ones."""
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode()).digest())[:count]


def query_texts(config: Config) -> list[str] | None:
    """At most num_samples of the configured queries, always the same; None when there are none."""
    if config.validation.queries is None:
        return None
    texts = read_queries(config.validation.queries, config.s3, "validation.queries")
    return sample_queries(texts, config.validation.num_samples)
