"""The exceptions that end a command early with one line, without a traceback."""

import contextlib
import difflib
from collections.abc import Iterable

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


@contextlib.contextmanager
def failure_as_user_error(what: str, remedy: str = ''):
    """Turns any error of the block that is no UserError into one: `what`, the reason, and the remedy.

    It takes any, because the client of a bucket has errors of its own.

    Args:
      what: the failure, such as 'PATH cannot be read'.
      remedy: if there is one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f' ({reason(error)}); {remedy}.' if remedy else f': {reason(error)}.'
        raise UserError(f'{what}{why}') from error


def suggest(name: str, known: Iterable[str], place: str = '') -> str:
    """' Did you mean X?', where X is `place` and the known name nearest to an unknown one; '' without one."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean {place}{nearest[0]}?' if nearest else ''


def reason(error: BaseException) -> str:
    """The reason of an error in one line of at most 300 characters."""
    text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return ' '.join(text.split())[:300]
