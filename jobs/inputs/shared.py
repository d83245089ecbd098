"""Folders of a run on several nodes: each node must see what this process has written or listed there."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cluster.nodes import cpu_nodes, on_each_node
from indexing.errors import ConfigError, ObjectNotFound, StoreUnavailable
from indexing.store import ObjectInfo, Store
from indexing.store.local import LocalStore
from jobs.config.schema import Config
from jobs.inputs.catalogue import Source, source_path
from jobs.run import Run


@dataclass(frozen=True)
class Probe:
    """An object that every node must see as it is here."""

    setting: str
    store: Store
    info: ObjectInfo

    def is_seen(self) -> bool:
        try:
            self.store.open(self.info.key, self.info).close()
        except (ObjectNotFound, StoreUnavailable):
            return False
        return True


def require_shared(run: Run, source: Source) -> None:
    """Raises ConfigError, naming the node, where one of several does not share a folder with this process.

    S3 and a single node need no check. Nodes that join later are not checked.
    """
    if len(cpu_nodes()) < 2:
        return
    with written_nonces([("store", run.store), ("workspace", run.workspace)]) as nonces:
        probes = [*nonces, *input_probes(run.config, source)]
        for node, unseen in on_each_node(partial(find_unseen, probes)) if probes else ():
            if unseen:
                raise ConfigError(
                    f"{unseen[0].setting}: node {node} does not see {unseen[0].store.url} as this process does; with "
                    "several nodes it must be on s3://, or in a folder that all of them share"
                )


def find_unseen(probes: list[Probe]) -> list[Probe]:
    return [probe for probe in probes if not probe.is_seen()]


@contextmanager
def written_nonces(stores: list[tuple[str, Store]]) -> Iterator[list[Probe]]:
    """A new object in each folder while the block runs."""
    written: list[Probe] = []
    try:
        for setting, store in stores:
            key = f"preflight/{uuid.uuid4().hex}"
            if isinstance(store, LocalStore):
                store.put(key, key.encode())
                info = store.head(key)
                assert info is not None
                written.append(Probe(setting, store, info))
        yield written
    finally:
        for probe in written:
            probe.store.delete(probe.info.key)


def input_probes(config: Config, source: Source) -> list[Probe]:
    """One file of the rows, and the .npy."""
    part, (setting, _) = source.parts[0], source_path(config)
    probes = [Probe(setting, part.store, part.info)]
    if source.npy:
        probes.append(Probe("vectors.path", source.npy.store, source.npy.info))
    return [probe for probe in probes if isinstance(probe.store, LocalStore)]
