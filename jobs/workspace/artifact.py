"""Artifacts of the stages: a folder of the workspace store whose name is a fingerprint of all that went into it."""

import json
from dataclasses import dataclass
from typing import Any

from indexing.errors import ConfigError, DamagedError, ObjectNotFound
from indexing.store import Store


@dataclass(frozen=True)
class Artifact:
    """What a stage makes. It is complete once its marker, written last, exists: that is the whole of resume."""

    store: Store
    path: str

    def key(self, name: str) -> str:
        return f"{self.path}/{name}"

    def read_marker(self) -> dict[str, Any] | None:
        """The marker's content, or None while the artifact is not complete."""
        try:
            return json.loads(self.store.get(self.key("done.json")))
        except ObjectNotFound:
            return None
        except ValueError as error:
            raise DamagedError(
                f"{self.store.url}/{self.key('done.json')} is not JSON: {error}; delete it and run again"
            ) from error

    def require_marker(self) -> dict[str, Any]:
        """The marker's content. Raises ConfigError while the artifact is not complete."""
        marker = self.read_marker()
        if marker is None:
            raise ConfigError(
                f"{self.store.url}/{self.path} is not complete: run the stages before this one, or nightly"
            )
        return marker

    def write_marker(self, content: dict[str, Any]) -> None:
        self.store.put(self.key("done.json"), json.dumps(content, sort_keys=True, indent=1).encode())
