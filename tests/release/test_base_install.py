"""`pip install nightcrate` without extras: releases are opened, searched by vectors, verified and compared."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STORE = ROOT / "tests" / "golden" / "v1" / "store"

MISSING = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "ray", "faiss", "pandas", "scipy")
"""What the base installation lacks."""
WITHOUT_THEM = f"""
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in {MISSING} else self.finder.find_spec(name, *arguments)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def run(code: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THEM + code],
        cwd=ROOT,
        env={"PATH": "", "NIGHTCRATE_CACHE": str(cache), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def command(*arguments: object, cache: Path) -> "subprocess.CompletedProcess[str]":
    argv = [str(argument) for argument in arguments]
    return run(f"from jobs.__main__ import main\nsys.exit(main({argv}))", cache)


def test_the_reader_alone_searches_by_vectors(tmp_path: Path) -> None:
    """The vector of an item finds that item."""
    code = f"""
from indexing import open_release
release = open_release({str(STORE)!r})
vector = release.shards[0].graph.vectors([3])
print([hit.item_id for hit in release.search(vector, k=1)[0]], [release.shards[0].item_ids[3].as_py()])
"""
    done = run(code, tmp_path)
    found, expected = done.stdout.strip().split("] [")
    assert (done.returncode, done.stderr) == (0, "")
    assert found.strip("[]") == expected.strip("[]") != ""


def test_the_reader_alone_refuses_a_text_naming_the_extra(tmp_path: Path) -> None:
    code = f"""
from indexing import open_release
from indexing.errors import ConfigError
try:
    open_release({str(STORE)!r}).search("rainy sunday piano")
except ConfigError as error:
    print(error)
"""
    done = run(code, tmp_path)
    assert done.stdout == "encoding text needs torch, which is not installed: pip install 'nightcrate[text]'\n"
    done = command("search", STORE, "rainy sunday piano", cache=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "nightcrate: encoding text needs torch, which is not installed: pip install 'nightcrate[text]'\n"
    )


def test_the_reader_alone_lists_verifies_and_compares(tmp_path: Path) -> None:
    for arguments in (("releases", STORE), ("verify", STORE), ("diff", STORE, 1, 1)):
        done = command(*arguments, cache=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_command_that_needs_ray_names_the_extra(tmp_path: Path) -> None:
    done = command("nightly", "-c", "configs/demo.yaml", cache=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "nightcrate: this command needs Ray, which is not installed: pip install 'nightcrate[build]'\n"
    )
