"""Inputs, store and workspace must lie apart: what one of them holds is never taken for what another holds."""

import os

from indexing.errors import ConfigError
from jobs.config.schema import Config


def require_apart(config: Config) -> None:
    """Raises ConfigError for inputs in the workspace, which may be deleted, and for inputs that contain our own files.

    The latter would be read as rows.
    """
    inputs = {
        "catalogue.path": config.catalogue.path,
        "vectors.path": config.vectors.path,
        "vectors.ids": config.vectors.ids,
        "validation.queries": config.validation.queries,
        "training.interactions": config.training.interactions,
        "evaluation.interactions": config.evaluation.interactions,
    }
    for setting, path in inputs.items():
        if path is None:
            continue
        for ours, url in (("store", config.store), ("workspace", config.workspace)):
            if is_within(url, path):
                raise ConfigError(
                    f"{setting}: expected files of yours alone, got {path}, which contains the {ours} {url}, whose "
                    "files would be read as rows; name another folder for one of them"
                )
        if is_within(path, config.workspace):
            raise ConfigError(
                f"{setting}: expected files outside the workspace {config.workspace}, which may be deleted at any "
                f"time, got {path}; name another folder for one of them"
            )


def is_within(inner: str, outer: str) -> bool:
    """Whether the folder or file `inner` is `outer` or below it."""
    return f"{place(inner)}/".startswith(f"{place(outer).rstrip('/')}/")


def place(url: str) -> str:
    """A URL or path in one form; links of a local one are followed."""
    return url.rstrip("/") if url.startswith("s3://") else os.path.realpath(url.removeprefix("file://"))
