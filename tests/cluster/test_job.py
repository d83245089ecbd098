"""How a submitted command ends: the exit code that a scheduler sees."""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.job import exit_code_of, quiet_ray, run_job
from cluster.session import ClusterUnavailable
from jobs.__main__ import main


def ended(status: JobStatus, code: int | None = None, message: str | None = None) -> JobDetails:
    kind = JobType.SUBMISSION
    return JobDetails(
        type=kind, submission_id="job", entrypoint="", status=status, driver_exit_code=code, message=message
    )


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (ended(JobStatus.SUCCEEDED, 0), 0),
        (ended(JobStatus.FAILED, 4), 4),
        (ended(JobStatus.FAILED, -9), 137),
        (ended(JobStatus.STOPPED), 143),
    ],
)
def test_the_code_is_that_of_the_command_as_a_shell_tells_it(info: JobDetails, code: int) -> None:
    assert exit_code_of(info) == code


def test_a_job_without_a_code_is_a_cluster_that_has_failed() -> None:
    with pytest.raises(ClusterUnavailable, match=r"job job has no exit code: runtime_env setup failed$"):
        exit_code_of(ended(JobStatus.FAILED, message="runtime_env setup failed\nTraceback"))


@dataclass
class FakeCluster:
    """One job, which prints two lines and would run until it is stopped."""

    status: JobStatus = JobStatus.RUNNING
    calls: list[str] = field(default_factory=list)

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, str]) -> str:
        self.calls.append(f"{entrypoint} in {runtime_env['working_dir']}")
        return "job"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for line in ("one\n", "two\n"):
            yield line

    def get_job_info(self, job: str) -> JobDetails:
        self.calls.append("asks")
        if self.status == JobStatus.RUNNING and self.calls.count("asks") == 3:
            raise KeyboardInterrupt
        return ended(self.status)

    def stop_job(self, job: str) -> None:
        self.calls.append("stops")
        self.status = JobStatus.STOPPED


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "before")
    monkeypatch.setattr("cluster.job.JobSubmissionClient", lambda: cluster)
    monkeypatch.setattr("cluster.job.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: None))
    return cluster


def test_an_interrupt_stops_the_job_and_waits_for_its_end(fake: FakeCluster) -> None:
    written: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_job("a command", ".", "http://here", written.append)
    assert written == ["one\n", "two\n"]
    assert fake.calls == ["a command in .", "asks", "asks", "asks", "stops", "asks"]


def test_submit_passes_all_that_follows_on_and_ends_with_the_code(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.status = JobStatus.STOPPED
    assert main(["submit", "-q", "--address", "http://here", "nightly", "-c", "my file.yaml", "-q", "index.M=8"]) == 143
    assert fake.calls[0] == "python -m jobs nightly -c 'my file.yaml' -q index.M=8 in ."
    assert capsys.readouterr().out == "one\ntwo\n"


def test_submit_without_a_cluster_exits_6_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "before")
    assert main(["submit", "--address", "http://127.0.0.1:9", "nightly", "-c", "x.yaml"]) == 6
    error = capsys.readouterr().err
    assert error.startswith("nightcrate: cannot submit a job to http://127.0.0.1:9: ") and error.count("\n") == 1


def test_submit_of_a_folder_that_is_not_there_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--working-dir", "/nowhere", "nightly"]) == 2
    assert capsys.readouterr().err == "nightcrate: --working-dir: expected a folder, got /nowhere\n"


def test_ray_is_quiet_only_while_a_job_is_sent() -> None:
    handler = logging.NullHandler(logging.INFO)
    logging.getLogger("ray").addHandler(handler)
    try:
        with quiet_ray():
            assert handler.level == logging.ERROR
        assert handler.level == logging.INFO
    finally:
        logging.getLogger("ray").removeHandler(handler)
