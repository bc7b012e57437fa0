"""The exceptions that end a command early with one line, without a traceback."""

# Exit code of a run that was stopped and can be resumed: EX_TEMPFAIL, call again.
CALL_AGAIN = 75


class UserError(Exception):
    """Invalid input in a config, a file or a folder; the message names it and a remedy."""


class Missing(UserError):
    """A data set is missing."""


class Diverged(UserError):
    """A loss or a metric of a run is not finite."""


class InUse(UserError):
    """Another process trains in a workdir."""


class Stopped(Exception):
    """A run was asked to stop and has saved; the same command continues it."""


def reason(error: BaseException) -> str:
    """The reason of an error in one line of at most 300 characters."""
    text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return ' '.join(text.split())[:300]
