"""A command as a job of a running cluster: submitted, followed, and ended with its own exit code."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.session import ClusterUnavailable, first_line

logger = logging.getLogger(__name__)
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
TERMINATED = 143
"""Of a job that somebody has stopped: Ray does so by SIGTERM, and then reports no code."""
POLL_S = 1.0
LOST_S = 60.0
"""For how long a cluster may give no answer before the job counts as lost."""
MAX_REASON = 300
"""Characters of Ray's message that an error shows."""


def run_job(entrypoint: str, working_dir: str, address: str | None, write: Callable[[str], object]) -> int:
    """The exit code of the command, whose output is passed to `write` as it arrives.

    `working_dir` is copied to the cluster. `address` is that of the dashboard, by default from the environment.
    A KeyboardInterrupt stops the job, and is raised once it has ended. Raises ClusterUnavailable where there is no
    cluster, or the job was lost, ValueError where the folder cannot be sent.
    """
    with quiet_ray():
        client, job = submit(entrypoint, working_dir, address)
    logger.info("submitted as job %s", job)
    try:
        write_logs(client, job, write)
        return exit_code_of(wait_until_ended(client, job))
    except KeyboardInterrupt:
        logger.info("stopping job %s", job)
        client.stop_job(job)
        wait_until_ended(client, job)
        raise


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Ray would name each file that it leaves out. Others share its handlers, so each gets its level back."""
    levels = {handler: handler.level for handler in logging.getLogger("ray").handlers}
    try:
        for handler in levels:
            handler.setLevel(logging.ERROR)
        yield
    finally:
        for handler, level in levels.items():
            handler.setLevel(level)


def submit(entrypoint: str, working_dir: str, address: str | None) -> tuple[JobSubmissionClient, str]:
    """(a client, the id of the job)."""
    if address:
        os.environ[ADDRESS_VARIABLE] = address  # which overrides Ray's own argument
    try:
        client = JobSubmissionClient()
        return client, client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": working_dir})
    except (OSError, RuntimeError) as error:
        where = address or "the address in the environment"
        raise ClusterUnavailable(f"cannot submit a job to {where}: {first_line(error)[:MAX_REASON]}") from error


def write_logs(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> None:
    """Everything that the job prints, until it ends or the connection breaks."""

    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            write(lines)

    try:
        asyncio.run(follow())
    except (OSError, RuntimeError) as error:
        logger.warning("the job's output is no longer followed: %s", first_line(error)[:MAX_REASON])


def wait_until_ended(client: JobSubmissionClient, job: str) -> JobDetails:
    answered = time.monotonic()
    while True:
        try:
            info = client.get_job_info(job)
        except (OSError, RuntimeError) as error:
            if time.monotonic() - answered > LOST_S:
                reason = first_line(error)[:MAX_REASON]
                raise ClusterUnavailable(
                    f"job {job} may be running, but its cluster does not answer: {reason}"
                ) from error
        else:
            answered = time.monotonic()
            if info.status.is_terminal():
                return info
        time.sleep(POLL_S)


def exit_code_of(info: JobDetails) -> int:
    """As a shell reports it. Raises ClusterUnavailable where the command was not started, or its node was lost."""
    if info.status == JobStatus.STOPPED:
        return TERMINATED
    code = info.driver_exit_code
    if code is None:
        reason = next(iter((info.message or "no reason is given").strip().splitlines()))
        raise ClusterUnavailable(f"job {info.submission_id} has no exit code: {reason[:MAX_REASON]}")
    return code if code >= 0 else 128 - code
