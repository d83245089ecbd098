"""Inputs, store and workspace lie apart, or the configuration is refused before any work."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from indexing.errors import ConfigError
from jobs.config.load import load_config

pytestmark = pytest.mark.case(31)


def load(folder: Path, **sections: Any) -> None:
    config = {
        "name": "apart",
        "store": "file://./build/store",
        "workspace": "file://./build/workspace",
        "catalogue": {"path": "tracks.csv", "collections": {"tracks": {"item_types": ["track"]}}},
        **sections,
    }
    path = folder / "my.yaml"
    path.write_text(json.dumps(config))
    load_config(str(path))


def catalogue(path: str | None) -> dict[str, Any]:
    return {"path": path, "collections": {"tracks": {"item_types": ["track"]}}}


@pytest.mark.parametrize("path", [".", "build", "./build/store", "build/workspace", "link"])
def test_a_catalogue_that_contains_our_own_files_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"catalogue\.path: expected files of yours alone, .* which contains the "):
        load(tmp_path, catalogue=catalogue(path))


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ({"catalogue": catalogue("build/workspace/items/tracks.csv")}, "catalogue.path"),
        ({"training": {"interactions": "build/workspace/training"}}, "training.interactions"),
        ({"evaluation": {"interactions": "build/workspace/training"}}, "evaluation.interactions"),
        ({"validation": {"queries": "build/workspace/queries.parquet"}}, "validation.queries"),
        (
            {
                "catalogue": {"collections": {"a": {"item_types": ["b"]}}},
                "vectors": {"path": "build/workspace/vectors"},
            },
            "vectors.path",
        ),
    ],
)
def test_inputs_in_the_workspace_are_refused_since_a_prune_may_delete_them(
    tmp_path: Path, section: dict[str, Any], setting: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{setting}: expected files outside the workspace ")):
        load(tmp_path, **section)


@pytest.mark.parametrize(
    ("store", "workspace", "path"),
    [
        ("s3://bucket/music", "s3://other/work", "s3://bucket"),
        ("s3://bucket/music/", "s3://other/work", "s3://bucket/music"),
        ("s3://other/store", "s3://bucket/music", "s3://bucket/music/items/rows.parquet"),
    ],
)
def test_the_same_holds_on_s3(tmp_path: Path, store: str, workspace: str, path: str) -> None:
    with pytest.raises(ConfigError, match="name another folder for one of them"):
        load(tmp_path, store=store, workspace=workspace, catalogue=catalogue(path))


@pytest.mark.parametrize("path", ["tracks.csv", "build/tracks", "build/store-of-rows", "s3://bucket/build"])
def test_folders_that_lie_apart_are_fine(tmp_path: Path, path: str) -> None:
    load(tmp_path, catalogue=catalogue(path))
