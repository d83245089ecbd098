"""Counts how often each reliability case was tried and how often it held, and prints the table of `make faults`.

A test says which cases it serves with `@pytest.mark.case(4)`, or `case(2, 24)`. It counts as one trial that held if it
passed; one that makes many asks for the fixture `trials` and counts them itself. The counts travel with the test's
report, so that they arrive from pytest-xdist's workers too.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

CASES = {
    1: "driver killed before and after each step",
    2: "worker or raylet killed",
    3: "response of the commit lost",
    4: "50 publishers at once: one wins",
    5: "a stalled publisher wakes",
    6: "store that ignores conditions",
    7: "storm of 503, SlowDown, 409, time-outs",
    8: "disk full",
    9: "orphaned multipart uploads",
    10: "shard altered after upload",
    11: "bit flip in a stored blob",
    12: "damaged release file",
    13: "release file that points elsewhere",
    14: "rollback during a publish",
    15: "rollback to a damaged release",
    16: "prune against publish, reader, rollback",
    17: "prune with a bad listing or clock",
    18: "resume with something changed",
    19: "bad rows",
    20: "a gate does not hold",
    21: "encoder that is not safe to load",
    22: "secrets in the environment",
    23: "two runs at once",
    24: "workers that die again and again",
    25: "newest release file damaged",
    26: "signature that nobody may trust",
    27: "cache and store deleted under a reader",
    28: "rows of every type in a hit",
    29: "the night after a rollback",
    30: "inputs replaced while they are read",
    31: "what is not data",
}
WIDTH = max(map(len, CASES.values()))
PROPERTY = "case trials"


@dataclass
class Trials:
    """What one test counts: `tried` before a trial, `held` after it."""

    num_tried: int = 0
    num_held: int = 0

    def tried(self, count: int = 1) -> None:
        self.num_tried += count

    def held(self, count: int = 1) -> None:
        self.num_held += count


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """For tests of many trials; whatever they count replaces the one trial that a test is by itself."""
    counted = Trials()
    yield counted
    request.node.user_properties.append((PROPERTY, (counted.num_tried, counted.num_held)))


class CaseTable:
    """The plugin that gathers the counts; one in the process that prints."""

    def __init__(self) -> None:
        self.tried: Counter[int] = Counter()
        self.held: Counter[int] = Counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties: dict[str, Any] = dict(report.user_properties)
        is_last_word = report.when == "teardown" or (report.when == "setup" and report.failed)
        if "cases" not in properties or not is_last_word or properties.get("outcome") == "skipped":
            return
        tried, held = properties.get(PROPERTY, (1, int(properties.get("outcome") == "passed")))
        for number in properties["cases"]:
            self.tried[number] += tried
            self.held[number] += held

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("the cases of docs/trust.md")
        terminalreporter.write_line(f"case  {'what':<{WIDTH}}  {'tried':>6}  {'held':>6}")
        for number, text in CASES.items():
            tried, held = self.tried[number], self.held[number]
            remark = "" if tried and tried == held else "  not tried" if not tried else "  DOES NOT HOLD"
            terminalreporter.write_line(f"{number:>4}  {text:<{WIDTH}}  {tried:>6}  {held:>6}{remark}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes a test's cases and how its call went in its properties, which its last report carries."""
    report = yield
    if call.when == "setup":
        item.user_properties += [("cases", numbers) for numbers in [case_numbers(item)] if numbers]
    if call.when == "call" or not report.passed:
        item.user_properties.append(("outcome", report.outcome))
    report.user_properties = list(item.user_properties)
    return report


def case_numbers(item: pytest.Item) -> list[int]:
    numbers = sorted({number for marker in item.iter_markers("case") for number in marker.args})
    assert set(numbers) <= CASES.keys(), f"{item.nodeid}: cases are 1 to {len(CASES)}, got {numbers}"
    return numbers


def pytest_configure(config: pytest.Config) -> None:
    """The table belongs to runs that select cases: `make faults`."""
    if "case" in config.option.markexpr and not hasattr(config, "workerinput"):
        config.pluginmanager.register(CaseTable(), "case-table")
