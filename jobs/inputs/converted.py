"""CSV and JSON lines in the workspace, as Parquet: made once, and found again by the digest of the file."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from indexing.store import ObjectInfo, Store
from jobs.inputs.files import content_digest, kind_of, open_listed
from jobs.inputs.text_files import read_tables
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.runs import parquet_bytes

FORMAT = 2
"""Raised when the way in which rows are read changes."""
ROW_GROUP_ROWS = 16_384
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Converted:
    keys: tuple[str, ...]
    """Parquet files of the workspace that together have the rows. Their types may differ, as in any files."""


def convert_file(store: Store, info: ObjectInfo, workspace: Store) -> tuple[str, tuple[ObjectInfo, ...]]:
    """(what changes with the rows of the file, its Parquet files). Raises what `read_tables` raises."""
    source, name = store.describe(info.key), info.key.lower()
    with open_listed(store, info) as file:
        digest = fingerprint(FORMAT, kind_of(name), name.endswith(".gz"), content_digest(store, info, file))
        artifact = Artifact(workspace, f"converted/{digest}", Converted)
        if (done := artifact.read()) and (found := find_all(workspace, done.keys)):
            return digest, found
        logger.info("%s: converting to Parquet", source)
        file.seek(0)
        keys = []
        for number, table in enumerate(read_tables(file, info.key, source)):
            keys.append(artifact.key(f"{number:05d}.parquet"))
            if workspace.head(keys[-1]) is None:  # a run that works at the same time may read it already
                workspace.put(keys[-1], parquet_bytes(table, row_group_size=ROW_GROUP_ROWS))
    artifact.write(Converted(keys=tuple(keys)))
    return digest, find_all(workspace, keys)


def find_all(workspace: Store, keys: Sequence[str]) -> tuple[ObjectInfo, ...]:
    """None of the files where one is missing, for example because somebody deleted it."""
    found = [workspace.head(key) for key in keys]
    return tuple(info for info in found if info) if all(found) else ()
