"""This machine's clocks, and waiting by them: one place, so that a test can substitute simulated time."""

import threading
import time

_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux's CLOCK_MONOTONIC stops while the machine sleeps; CLOCK_BOOTTIME does not, nor does macOS' CLOCK_MONOTONIC."""


def wall_s() -> float:
    """Unix seconds by this machine, which may be wrong and may jump."""
    return time.time()


def elapsed_s() -> float:
    """Seconds since some moment; keeps counting while the process is stopped or the machine sleeps, never jumps."""
    return time.clock_gettime(_ELAPSED)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def wait(event: threading.Event, seconds: float) -> bool:
    """Whether the event was set within `seconds`."""
    return event.wait(seconds)
