"""nightcrate: rebuild, publish, check and search releases. `python -m jobs COMMAND` is the same."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType

import typer

from jobs.cli.app import PROGRAM, make_app
from jobs.cli.group import usage_text
from jobs.cli.output import Output, escape_unencodable

COMPLETION_VARIABLE = f"_{PROGRAM.upper()}_COMPLETE"
WRONG_ARGUMENTS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an expected failure is one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    output = Output(log_format="json" if asks_for_json_lines(arguments) else "text")
    escape_unencodable()
    with sigterm_interrupts(output):
        try:
            return run(arguments, output)
        except BrokenPipeError:
            leave_closed_pipe()
            return 0
        except (Exception, KeyboardInterrupt) as error:
            exit_code = output.fail(*output.ending_of(error))
            flush()
            return exit_code


def run(arguments: list[str], output: Output) -> int:
    app = make_app()
    try:
        if os.environ.get(COMPLETION_VARIABLE):  # set by the shell, which asks for completions
            app.main(arguments, prog_name=PROGRAM, obj=output)
        with app.make_context(PROGRAM, arguments, obj=output) as context:
            app.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:  # typer, after it has printed for the completion
        return int(end.code or 0)
    except typer.TyperException as error:
        return output.fail(usage_text(error), WRONG_ARGUMENTS)
    sys.stdout.flush()
    return 0


def asks_for_json_lines(arguments: Sequence[str]) -> bool:
    """Known before the arguments are parsed, since parsing them may fail."""
    return "--log-format=json" in arguments or ("--log-format", "json") in pairwise(arguments)


@contextmanager
def sigterm_interrupts(output: Output) -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt, so that a lease is released; `output` then notes it.

    Ray passes on a KeyboardInterrupt and no other exception. The first SIGTERM is obeyed, further ones are ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        is_first, output.is_terminated = not output.is_terminated, True
        if is_first:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def flush() -> None:
    """Flushes what a failed command has printed, if somebody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()


def leave_closed_pipe() -> None:
    """The reader of standard output has closed it: Python's own flush at exit must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
