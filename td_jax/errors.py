"""What ends a command early: reported as one line, without a traceback."""

# Exit code of a run that ended before its end and can go on: EX_TEMPFAIL, call again.
CALL_AGAIN = 75


class UserError(Exception):
    """A mistake in a config, a file or a folder; its message names it and the way out."""


class Diverged(UserError):
    """A loss or a metric of a run is not finite."""


class Stopped(Exception):
    """A run was asked to stop and has saved; the same command continues it."""
