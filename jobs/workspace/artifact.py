"""Artifacts of the stages: a folder of the workspace whose name is a fingerprint of all that went into it."""

import json
from dataclasses import dataclass
from typing import Generic, TypeVar

from indexing.errors import DamagedError, ObjectNotFound
from indexing.release.codec import from_plain, to_plain
from indexing.store import Store

Record = TypeVar("Record")
DONE = "done.json"
"""The marker of an artifact."""


@dataclass(frozen=True)
class Artifact(Generic[Record]):
    """What a stage makes. It is complete once its record, written last, exists: that is all that resuming needs."""

    store: Store
    path: str
    kind: type[Record]

    def key(self, name: str) -> str:
        return f"{self.path}/{name}"

    def read(self, *names: str) -> Record | None:
        """The record; None while the artifact is not complete, or where another version wrote a record of another form.

        Not complete is one whose files of these `names` are not all there any more; a name with / at its end stands for
        any file below it. Raises DamagedError for a record that is not JSON.
        """
        key = self.key(DONE)
        try:
            value = json.loads(self.store.get(key))
        except ObjectNotFound:
            return None
        except ValueError as error:
            raise DamagedError(f"{self.store.describe(key)} is not JSON: {error}; delete it and run again") from error
        try:
            record = from_plain(self.kind, value)
        except DamagedError:
            return None
        return record if all(any(self.store.list(self.key(name))) for name in names) else None

    def forget(self) -> None:
        """The artifact is no longer complete; its files stay until they are written again."""
        self.store.delete(self.key(DONE))

    def write(self, record: Record) -> None:
        self.store.put(self.key(DONE), json.dumps(to_plain(record), sort_keys=True, indent=1).encode())
