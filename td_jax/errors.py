"""What ends a command early: reported as one line, without a traceback."""

# Exit code of a run that ended before its end and can go on: EX_TEMPFAIL, call again.
CALL_AGAIN = 75


class UserError(Exception):
    """A mistake in a config, a file or a folder; its message names it and the way out."""


class Missing(UserError):
    """A data set is not where it should be."""


class Diverged(UserError):
    """A loss or a metric of a run is not finite."""


class Stopped(Exception):
    """A run was asked to stop and has saved; the same command continues it."""


def reason(error: BaseException) -> str:
    """Why something cannot be read or written, in one line of at most 300 characters."""
    text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return ' '.join(text.split())[:300]
