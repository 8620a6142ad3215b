"""What can go wrong, by exit code: one sentence for the user, no traceback, nothing lost."""


class GraftError(Exception):
    """An error whose message is one sentence a user can act on; `exit_code` is the process's."""

    exit_code = 1


class ConfigError(GraftError):
    """The config, an override or a combination of both cannot run."""

    exit_code = 2


class NonFiniteError(GraftError):
    """Too many steps in a row gave a loss or a gradient that is not finite."""

    exit_code = 3


class LockedError(GraftError):
    """Another process holds this run directory."""

    exit_code = 4


class HangError(GraftError):
    """Nothing moved for too long: a collective, a file system or an input is stuck."""

    exit_code = 5


class StorageError(GraftError):
    """A file could not be written or read back: disk full, damaged checkpoint, no permission."""

    exit_code = 6


class DataError(GraftError):
    """Input rows cannot be used; the message names file, line and reason."""

    exit_code = 7


class PreemptedError(GraftError):
    """The process was told to stop (SIGTERM, SIGINT) and has saved."""

    exit_code = 143
