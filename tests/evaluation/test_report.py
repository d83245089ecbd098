"""What an evaluation prints."""

import json

import pytest

from jobs.evaluation.report import EvaluationReport
from jobs.report.evaluation import print_evaluation
from jobs.report.terminal import PlainConsole


def test_judgements_that_are_left_out_have_a_line_and_are_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = {"judgements of documents that corpus.jsonl does not have": 1200}
    report = EvaluationReport(num_queries=3, num_unknown_items=0, left_out=left_out, rankers={}, differences={})
    print_evaluation(PlainConsole(), report, "nDCG@10")
    assert "1,200 judgements of documents that corpus.jsonl does not have are left out\n" in capsys.readouterr().out
    assert json.loads(report.to_bytes())["left_out"] == left_out
