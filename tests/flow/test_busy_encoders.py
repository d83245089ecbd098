"""Encoders compute while tasks read, tokenise and write: measured by the encoders' own clocks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flow.worlds import ROOT

SCRIPT = ROOT / "tests" / "support" / "busy_encoders.py"


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_over_a_slow_store_two_gpus_are_busy_nine_tenths_of_the_time(tmp_path: Path) -> None:
    """In turn with the two requests of 0.3 s for each bucket, a second of work would be 0.63 of the time."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert float(ended.stdout.splitlines()[-1]) >= 0.9
