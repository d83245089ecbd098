"""The command line itself: help, usage errors, output for people and for programs, log lines, signals."""

import datetime
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.tiny_encoder import write_tiny_encoder
from support.tiny_release import ReleaseMaker, unit_vectors

from indexing.release.commit import read_release, release_numbers
from indexing.release.lease import hold_lease
from indexing.search.results import Hit
from indexing.store import open_store
from jobs.__main__ import main
from jobs.cli.app import COMMANDS, make_app
from jobs.cli.output import Output
from jobs.cli.search import print_hits
from jobs.evaluation.report import EvaluationReport
from jobs.report.terminal import printable

ROOT = Path(__file__).parents[2]
APP = make_app()
EXAMPLES = [
    line.strip()
    for command in APP.commands.values()
    for line in (command.epilog or "").splitlines()
    if line.startswith("  nightcrate ")
]


@pytest.fixture
def own_store(published: str, tmp_path: Path) -> str:
    """A copy of it to be written to."""
    copy, source = open_store(str(tmp_path / "copy")), open_store(published)
    for info in source.list():
        copy.put(info.key, source.get(info.key))
    return copy.url


@pytest.fixture
def titles(tmp_path: Path) -> Callable[..., str]:
    """titles(text …) publishes a release of items with these ids, whose titles are `title of ID`; the store's URL."""

    def publish(*texts: str) -> str:
        maker, store = ReleaseMaker(tmp_path), open_store(f"file://{tmp_path}/titles")
        model = write_tiny_encoder(tmp_path / "model", [" ".join(texts)])
        names = sorted(path.name for path in model.iterdir())
        vectors = unit_vectors(len(texts), 32)
        encoder = maker.encoder(model, [name for name in names if "README" not in name], 32)
        maker.publish(store, maker.collection("tracks", list(texts), vectors), encoder=encoder, dim=32)
        return store.url

    return publish


def process(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


# --- help ---


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        outputs.append(capsys.readouterr())
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0].out.startswith("Usage: nightcrate ") and outputs[0].err == ""


def test_the_help_lists_each_command_below_the_heading_of_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    for group, commands in COMMANDS.items():
        section = lines[lines.index(f"{group}:") + 1 :]
        section = section[: section.index("")]
        assert [line.split()[0] for line in section if line[2] != " "] == [name for name, _, _ in commands]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 6, 70, 130, 143])
def test_the_help_explains_each_exit_code(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert f"\n{code:5d}  " in capsys.readouterr().out


@pytest.mark.parametrize("command", APP.commands)
def test_each_command_has_help_worth_reading(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: nightcrate {command} ")
    assert f"\n  nightcrate {command} " in text.partition("Example")[2]
    assert all(param.help for param in APP.commands[command].params), "a parameter without help"
    assert {"--verbose", "--quiet", "--log-format", "--debug"} <= set(text.replace(",", " ").split())


@pytest.mark.parametrize("command", APP.commands)
def test_help_fits_into_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip() not in EXAMPLES]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_of_the_help_parses(example: str) -> None:
    program, *arguments = shlex.split(example)
    with APP.make_context(program, arguments, obj=Output()) as context:
        name, command, rest = APP.resolve_command(context, arguments)
        command.make_context(name, rest, parent=context)


def test_every_command_but_submit_takes_json() -> None:
    """Which prints what another command does."""
    takes_json = {name for name, command in APP.commands.items() for param in command.params if "--json" in param.opts}
    assert set(APP.commands) - takes_json == {"submit"}


def test_an_example_that_does_not_parse_is_noticed() -> None:
    with pytest.raises(typer.TyperException):
        test_each_example_of_the_help_parses("nightcrate search --nothing x")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["search", "--help"], ["nightly", "--help"]], ids=str)
def test_help_and_version_load_no_heavy_library(arguments: list[str]) -> None:
    heavy = {"ray", "torch", "pyarrow", "transformers", "hnswlib", "numpy", "boto3"}
    code = f"import sys; from jobs.__main__ import main; main({arguments}); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_version_names_the_libraries_that_decide_what_a_release_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nightcrate ")
    assert [part.split()[0] for part in lines[1].split(", ")] == ["python", "ray", "torch", "hnswlib"]
    monkeypatch.setattr("jobs.cli.app.VERSIONS_OF", ("no-such-library",))
    main(["--version"])
    assert capsys.readouterr().out.endswith(", no-such-library is not installed\n")


def test_a_shell_completes_the_names_of_commands() -> None:
    done = process(_NIGHTCRATE_COMPLETE="complete_bash", COMP_WORDS="nightcrate ver", COMP_CWORD="1")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["verify"], "")


# --- usage errors ---


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("serch", "unknown command serch; did you mean search? see nightcrate --help"),
        ("xyzzy", "unknown command xyzzy; see nightcrate --help"),
        ("search x --quries y", "unknown option --quries; did you mean --queries? see nightcrate search --help"),
        ("search x -z", "unknown option -z; see nightcrate search --help"),
        ("--vrbose search", "unknown option --vrbose; did you mean --verbose? see nightcrate --help"),
        ("search", "missing STORE; see nightcrate search --help"),
        ("nightly", "missing -c / --config; see nightcrate nightly --help"),
        ("nightly -c", "option -c requires an argument; see nightcrate nightly --help"),
        ("search x y -k ten", "-k: expected a whole number, got 'ten'; see nightcrate search --help"),
        ("pin x one", "expected a whole number, got 'one'; see nightcrate pin --help"),
        ("search a b c", "got unexpected extra argument(s) (c); see nightcrate search --help"),
        ("search a b --log-format xml", "--log-format: expected text or json, got 'xml'; see nightcrate search --help"),
        ("releases x -q -v", "expected --verbose or --quiet, got both; see nightcrate releases --help"),
    ],
)
def test_wrong_arguments_are_one_line_that_says_what_to_read(
    arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    assert capsys.readouterr() == ("", f"nightcrate: {line}\n")


@pytest.mark.parametrize(
    "arguments", ["--log-format json serch", "search --log-format=json --bad", "search --log-format json"]
)
def test_with_json_lines_an_error_is_one_as_well(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    record = json.loads(capsys.readouterr().err)
    assert (record["level"], record["logger"], record["exit_code"]) == ("error", "nightcrate", 2)
    assert record["message"].endswith(" --help")


# --- log lines ---


LogLines = Callable[..., list[str]]


@pytest.fixture
def log_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> LogLines:
    """log_lines(arguments …) runs a verify that ends well, and gives what it wrote to standard error."""
    monkeypatch.setattr(logging.root, "level", logging.WARNING)

    def log_lines_(*arguments: str) -> list[str]:
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own, which keep others from being added
        assert main(list(arguments)) == 0
        output = capsys.readouterr()
        assert "is valid" in output.out
        return output.err.splitlines()

    return log_lines_


def test_quiet_says_the_result_alone_and_verbose_more_than_usual(published: str, log_lines: LogLines) -> None:
    usual, quiet, verbose, debug = (
        log_lines("verify", published, *extra) for extra in ([], ["--quiet"], ["-v"], ["--debug"])
    )
    assert [re.sub(r"[0-9.,]+", "N", line) for line in usual] == [
        "N:N:N verify: startedN N bytes to do",
        "N:N:N verify: done in N s",
    ]
    assert quiet == []
    assert sum("downloading" in line for line in verbose) == len(read_release(open_store(published)).blobs())
    assert len(usual) < len(verbose) <= len(debug)


@pytest.mark.parametrize("option", [["-q"], ["--quiet"], ["--log-format", "json"], ["--verbose"]], ids=" ".join)
def test_output_options_work_before_and_after_the_command(
    published: str, log_lines: LogLines, option: list[str]
) -> None:
    before, after = log_lines(*option, "verify", published), log_lines("verify", published, *option)
    assert len(before) == len(after)
    assert all(line.startswith("{") for line in [*before, *after]) == (option != ["--verbose"])


def test_json_log_lines_say_when_how_grave_and_who(published: str, log_lines: LogLines) -> None:
    records = [json.loads(line) for line in log_lines("verify", published, "--log-format", "json")]
    assert {record["logger"] for record in records} == {"jobs.progress"}
    assert records[0]["message"].startswith("verify: started")
    assert [set(record) for record in records] == [{"time", "level", "logger", "message"}] * len(records)
    for record in records:
        when = datetime.datetime.fromisoformat(record["time"])
        assert when.utcoffset() == datetime.timedelta(0)
        assert abs(when.timestamp() - time.time()) < 60


def test_a_traceback_is_part_of_its_json_line(published: str) -> None:
    done = process("verify", published, "--release", "9", "--debug", "--log-format", "json")
    *_, trace, error = [json.loads(line) for line in done.stderr.splitlines()]
    assert "Traceback" in trace["traceback"]
    assert (error["exit_code"], done.returncode) == (2, 2)


# --- results for programs ---


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Standard output of a command that ends well: one JSON document and nothing else."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_search_as_json_has_the_hits_with_their_metadata(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "search", published, "balark", "-k", "2")
    assert (found["release"], found["query"], [hit["rank"] for hit in found["hits"]]) == (2, "balark", [1, 2])
    assert set(found["hits"][0]) == {"rank", "score", "collection", "item_id", "metadata"}
    assert found["hits"][0]["metadata"] == {"title": f"title of {found['hits'][0]['item_id']}"}


def test_init_as_json_is_the_guess_and_some_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("id,name,year\n1,Rain Song,1973\n2,Halloween,2006\n")
    out = str(tmp_path / "a.yaml")
    found = document(capsys, "init", str(tmp_path / "a.csv"), "--out", out)
    assert found == {
        "config": out,
        "columns": {"item_id": "id", "title": "name"},
        "carried": ["year"],
        "num_rows": 2,
        "texts": ["Rain Song", "Halloween"],
    }
    assert Path(out).is_file()


def test_verify_as_json_counts_what_was_read(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    release = read_release(open_store(published))
    assert document(capsys, "verify", published) == {
        "release": 2,
        "num_blobs": len(release.blobs()),
        "size_bytes": release.size_bytes,
        "num_items": 52,
    }


def test_rollback_as_json_names_the_new_release(own_store: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "rollback", own_store, "--to", "1")
    assert found == {"release": 3, "rolled_back_to": 1, "holds": [], "store": own_store}
    assert release_numbers(open_store(own_store)) == [1, 2, 3]


def test_pin_and_unpin_as_json_say_what_is_pinned_now(own_store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "pin", own_store, "1") == {"release": 1, "is_pinned": True}
    assert [row["is_pinned"] for row in document(capsys, "releases", own_store)] == [True, False]
    assert document(capsys, "unpin", own_store, "1") == {"release": 1, "is_pinned": False}


def test_prune_as_json_is_the_plan_and_whether_it_was_applied(
    own_store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.release.retention.MIN_AGE_S", 0.0)  # what the test writes is young
    store = open_store(own_store)
    store.put("blobs/sha256/ab/" + "ab" * 32, b"left over")
    long_ago = time.time() - 10  # a file's time is that of the kernel's last tick, so it may lie ahead of the clock
    os.utime(Path(own_store.removeprefix("file://"), "blobs", "sha256", "ab", "ab" * 32), (long_ago, long_ago))
    options = ("prune", own_store, "--min-age", "0s", "--keep-last", "1")
    plan = document(capsys, *options)
    assert (plan["is_applied"], plan["num_deleted"], plan["to_abort"]) == (False, 0, [])
    assert plan["to_delete"] == [{"key": "blobs/sha256/ab/" + "ab" * 32, "size_bytes": 9}]
    assert plan["to_delete_bytes"] == 9
    assert plan["protected"] == {"2": "one of the last 1"}
    assert store.head(plan["to_delete"][0]["key"]) is not None
    applied = document(capsys, *options, "--apply")
    assert (applied["is_applied"], applied["num_deleted"]) == (True, 1)
    assert store.head(plan["to_delete"][0]["key"]) is None


def test_evaluate_as_json_is_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = EvaluationReport(num_queries=3, num_unknown_items=0, rankers={}, differences={})
    monkeypatch.setattr("jobs.evaluation.run.run_evaluation", lambda *_: report)
    out = tmp_path / "report.json"
    found = document(capsys, "evaluate", "-c", str(ROOT / "configs/demo.yaml"), "--out", str(out))
    assert found == json.loads(out.read_text())
    assert found["num_queries"] == 3
    nowhere = str(tmp_path / "no folder" / "report.json")
    assert main(["evaluate", "-c", str(ROOT / "configs/demo.yaml"), "--out", nowhere, "--json"]) == 2


# --- what terminals cannot show ---


@pytest.mark.parametrize("command", [["search", "STORE", "ночью", "-k", "2"], ["releases", "STORE"]], ids=" ".join)
def test_an_ascii_terminal_gets_replacements(
    titles: Callable[..., str], command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The titles are Cyrillic; a release without recall shows a dash that ASCII lacks."""
    url, terminal = titles("балалайка ночью – live", "чайка"), io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setenv("NIGHTCRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdout", terminal)
    assert main([url if argument == "STORE" else argument for argument in command]) == 0
    terminal.seek(0)
    assert "\\u" in terminal.read()


def test_an_error_is_replaced_for_an_ascii_terminal_too() -> None:
    done = process("releases", "file:///нет", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.isascii() and "\\u043d" in done.stderr


@pytest.mark.case(28)
def test_control_characters_of_a_title_do_not_reach_the_terminal(
    titles: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTCRATE_CACHE", str(tmp_path / "cache"))
    url = titles("one \x1b[31mred\x1b]0;owned\x07", "two \x9b2J \u202egnp.exe", "three\r\nfour")
    assert main(["search", url, "one", "-k", "3"]) == 0
    text = capsys.readouterr().out
    assert "title of one [31mred]0;owned" in text and "title of three  four" in text
    assert [character for character in text if character in "\x1b\x07\x9b\u202e\r"] == []
    assert len(text.splitlines()) == 1 + 3


def test_control_characters_in_an_error_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["\x1b[31mserch\x07"]) == 2
    assert capsys.readouterr().err == "nightcrate: unknown command [31mserch; see nightcrate --help\n"


def test_printable_leaves_letters_marks_and_emoji_as_they_are() -> None:
    for text in ("Björk – Jóga", "नमस्ते", "👩‍👩‍👧", "a  b"):
        assert printable(text) == text


LONG_HITS = [
    Hit(
        item_id="spotify:track:" + "4uLU6hMCjMI75M1A2tKUQC" * 2,
        score=0.5,
        collection="tracks",
        metadata={"title": "so " * 60},
    ),
    Hit(item_id="short", score=0.25, collection="shows", metadata={"title": "x", "creators": ["one", "two"]}),
]


def test_without_a_terminal_each_row_is_one_complete_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_hits(LONG_HITS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert LONG_HITS[0].item_id in lines[1] and ("so " * 60).strip() in lines[1]


def test_in_a_narrow_terminal_titles_are_cut_but_never_numbers_and_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    print_hits(LONG_HITS)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 3
    assert LONG_HITS[0].item_id in lines[1] and "0.500" in lines[1] and "so so" in lines[1]
    assert "so " * 20 not in lines[1]


# --- how a command ends ---


@pytest.mark.parametrize("command", [["--help"], ["releases", "STORE"]], ids=str)
def test_a_reader_that_closes_the_pipe_is_no_error(published: str, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        arguments = [published if argument == "STORE" else argument for argument in command]
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def held(own_store: str) -> "Iterator[subprocess.Popen[str]]":
    """A rollback that holds the lease of `own_store` and would never end."""
    code = (
        "import signal, sys, time, jobs.__main__, indexing.release.rollback as rollback\n"
        # What a shell starts in the background inherits an ignored SIGINT, and so would this process.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "rollback.roll_back = lambda *a, **k: (print('holds', flush=True), time.sleep(600))\n"
        f"sys.exit(jobs.__main__.main(['rollback', {own_store!r}, '--to', '1', '-q']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("number", "exit_code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_command_in_one_line_and_the_lease_is_free(
    held: "subprocess.Popen[str]", own_store: str, number: signal.Signals, exit_code: int, word: str
) -> None:
    held.send_signal(number)
    _, error = held.communicate(timeout=30)
    assert error == f"nightcrate: {word}; run again to resume from the last finished step\n"
    assert held.returncode == exit_code
    with hold_lease(open_store(own_store), "the next", wait=False):
        pass


def test_the_handler_of_sigterm_is_the_one_before_when_main_has_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_quiet_is_forgotten_by_the_next_command(published: str) -> None:
    main(["releases", published, "-q"])
    assert logging.getLogger("jobs").level == logging.ERROR
    main(["releases", published])
    assert logging.getLogger("jobs").level == logging.INFO
