"""The errors a caller can act on. Each kind carries the exit code that the command line ends with."""


class NightcrateError(Exception):
    """Base of every expected failure; its text is one line: what was expected, what was found, what to do."""

    exit_code = 70


def first_line(error: BaseException) -> str:
    """The first line of what an error says, which is all that fits into another error's text."""
    return next(iter(str(error).strip().splitlines()), "")


class ConfigError(NightcrateError):
    """Wrong configuration or arguments."""

    exit_code = 2


class DataError(NightcrateError):
    """Input data that violates its contract."""

    exit_code = 3


class DamagedError(DataError):
    """Stored bytes that are not what their digest, size or schema says."""


class UntrustedError(DamagedError):
    """A release that no trusted key has signed, though nothing says that it is damaged."""


class ValidationFailed(NightcrateError):
    """A gate failed; nothing was published."""

    exit_code = 4


class PublishConflict(NightcrateError):
    """Another run is publishing or has published."""

    exit_code = 5


class StoreUnavailable(NightcrateError):
    """Object storage is unavailable, refuses access, or lacks an operation that is needed."""

    exit_code = 6


class ReplacedError(StoreUnavailable):
    """An object that was replaced while it was read; where it is an input, callers turn it into a DataError."""


class ObjectNotFound(NightcrateError):
    """A key that the store does not have; callers turn it into the error that fits."""
