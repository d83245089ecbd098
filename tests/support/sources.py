"""The rows of a configuration, for tests that have no run."""

from indexing.store import open_store
from jobs.config.schema import Config
from jobs.inputs.catalogue import Source, scan_source


def scan(config: Config) -> Source:
    return scan_source(config, open_store(config.workspace, config.s3))
