"""What a command prints: the result on standard output; progress, log lines and errors on standard error."""

import datetime
import io
import json
import logging
import sys
from dataclasses import dataclass
from typing import cast

import typer

from indexing.errors import first_line
from jobs.progress import Progress
from jobs.report.terminal import PlainConsole, printable

logger = logging.getLogger(__name__)
OWN_PACKAGES = ("jobs", "cluster", "indexing")
LOG_FORMATS = ("text", "json")
BUG = 70
INTERRUPTED = 130
TERMINATED = 143
RESUME = "run again to resume from the last finished step"


@dataclass
class Output:
    """What -v, -q, --debug and --log-format ask for, before or after the name of the command."""

    is_verbose: bool = False
    is_quiet: bool = False
    is_debug: bool = False
    log_format: str = "text"
    is_terminated: bool = False
    """Whether SIGTERM was received, which arrives as a KeyboardInterrupt."""

    def set_up_logging(self) -> None:
        """The project's own lines always, those of the libraries only with --debug."""
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines() if self.log_format == "json" else TextLines())
        own, others = self._levels()
        logging.basicConfig(level=others, handlers=[handler])
        for name in OWN_PACKAGES:
            logging.getLogger(name).setLevel(own)
        if self.log_format == "json":
            logging.captureWarnings(True)
        if self.is_debug:
            logging.getLogger("botocore").setLevel(logging.INFO)  # its debug lines show the session token

    def _levels(self) -> tuple[int, int]:
        """(of the project's own loggers, of all others)."""
        if self.is_debug:
            return logging.DEBUG, logging.DEBUG
        if self.is_quiet:
            return logging.ERROR, logging.ERROR
        return logging.DEBUG if self.is_verbose else logging.INFO, logging.WARNING

    def progress(self, *, stderr: bool = True) -> Progress:
        """Bars on a terminal, unless the command is quiet or logs as JSON."""
        is_plain = self.is_quiet or self.log_format == "json"
        return Progress(PlainConsole(stderr=stderr, force_terminal=False if is_plain else None))

    def ending_of(self, error: BaseException) -> tuple[str, int]:
        """The line and the exit code with which a command ends that raises this."""
        if isinstance(error, KeyboardInterrupt):
            word, exit_code = ("terminated", TERMINATED) if self.is_terminated else ("interrupted", INTERRUPTED)
            return f"{word}; {RESUME}", exit_code
        if (known := getattr(error, "exit_code", None)) is not None:
            return one_line(str(error)), known
        return one_line(f"a bug, {type(error).__name__}: {first_line(error)}; --debug shows where"), BUG

    def fail(self, text: str, exit_code: int) -> int:
        """One line on standard error, with --debug the traceback before it; returns `exit_code`."""
        self.set_up_logging()
        if self.is_debug:
            logger.exception("failed")
        message = one_line(text)
        if self.log_format == "json":
            print(json_line("error", "nightcrate", message, exit_code=exit_code), file=sys.stderr)
        else:
            print(f"nightcrate: {message}", file=sys.stderr)
        return exit_code


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def output_of(context: typer.Context) -> Output:
    return cast(Output, context.obj)


def print_json(record: object) -> None:
    """One document; a value that JSON has no type for, such as a date in the metadata of an item, becomes text."""
    print(json.dumps(record, indent=1, default=str))


class TextLines(logging.Formatter):
    """Time of day and message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class JsonLines(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        more = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json_line(record.levelname.lower(), record.name, record.getMessage(), record.created, **more)


def json_line(level: str, name: str, message: str, created: float | None = None, **more: object) -> str:
    """`created` in unix seconds, now by default."""
    time = (
        datetime.datetime.now(datetime.UTC)
        if created is None
        else datetime.datetime.fromtimestamp(created, datetime.UTC)
    )
    return json.dumps(
        {"time": time.isoformat(timespec="milliseconds"), "level": level, "logger": name, "message": message, **more}
    )


def escape_unencodable() -> None:
    """A title in Cyrillic is printed to an ASCII terminal as escapes, instead of failing the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
