"""The pages of docs/: tables and commands are those of the code, links work, the site builds without a warning."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from support.documented import columns_of, field_names_of

from indexing.catalogue.contract import CONTRACT, REQUIRED
from indexing.release.encoder_entry import EncoderEntry
from indexing.release.hold import Hold
from indexing.release.manifest import Collection, Delta, Release, Shard, Signature, Tombstones
from indexing.release.registry import AcceptedEncoder
from indexing.release.shard import ITEMS_SCHEMA, TOMBSTONES_SCHEMA
from jobs.__main__ import main
from jobs.cli.search_file import HITS
from jobs.inputs.catalogue import RESERVED
from jobs.inputs.interactions import INTERACTIONS
from jobs.inputs.interactions import REQUIRED as REQUIRED_OF_INTERACTIONS
from jobs.run_record import RunRecord, StageRecord
from jobs.training.encoder.pairs import PAIRS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(
    ("section", "schema"),
    [
        ("Catalogue", CONTRACT),
        ("Interactions", INTERACTIONS),
        ("Hits", HITS),
        ("Shard items", ITEMS_SCHEMA),
        ("Tombstones", TOMBSTONES_SCHEMA),
        ("Training pairs", PAIRS),
    ],
)
def test_the_documented_columns_are_those_of_the_schema(section: str, schema: pa.Schema) -> None:
    assert columns_of(section) == [(field.name, re.sub(r"\w+: ", "", str(field.type))) for field in schema]


@pytest.mark.parametrize(("section", "required"), [("Catalogue", REQUIRED), ("Interactions", REQUIRED_OF_INTERACTIONS)])
def test_the_columns_documented_as_required_are_required(section: str, required: tuple[str, ...]) -> None:
    assert columns_of(section, where={"required": "yes"}) == columns_of(section, names=required)


@pytest.mark.parametrize(
    "record",
    [
        Release,
        Hold,
        Collection,
        Shard,
        Delta,
        Tombstones,
        EncoderEntry,
        Signature,
        AcceptedEncoder,
        RunRecord,
        StageRecord,
    ],
)
def test_the_documented_fields_are_those_of_the_record(record: type) -> None:
    assert field_names_of(record.__name__) == [field.name for field in dataclasses.fields(record)]


def test_every_name_that_the_stages_take_is_documented() -> None:
    text = (DOCS / "data-model.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("- These names are reserved"))
    assert set(re.findall(r"`(\w+)`", line)) == RESERVED


def commands() -> list[str]:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    return re.findall(r"^### (\w+)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_every_documented_command_exists_and_has_an_example(command: str) -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert re.search(rf"^    nightcrate {command} ", text, re.MULTILINE)
    try:
        code = main([command, "--help"])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    """`…::name` is in the file that was named last."""
    text = page.read_text(encoding="utf-8")
    cited: list[tuple[Path, str]] = []
    for name, function in re.findall(r"`(?:tests/)?([\w/]+\.py|…)(?:::(\w+))?", text):
        path = cited[-1][0] if name == "…" else ROOT / "tests" / name
        cited += [(path, function)] if path.name.startswith("test_") else []
    missing = [(path.name, name) for path, name in cited if not path.exists() or f"def {name}" not in path.read_text()]
    assert missing == []


def test_the_site_builds_without_a_warning_and_asks_no_other_site(tmp_path: Path) -> None:
    """Links between pages and to their headings are checked by mkdocs, too."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("needs mkdocs-material: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(pages) > 20
    loaded = re.compile(r"""<(?:script|img|iframe)[^>]+src=["'](?:https?:)?//|<link[^>]+href=["'](?:https?:)?//""")
    assert [match for page in pages for match in loaded.findall(page)] == []
