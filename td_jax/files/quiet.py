"""What Orbax, TensorStore and asyncio print besides the error that a save raises, and how it is dropped.

The commands drop it, for which every failure is one line. Who imports td_jax keeps loggers and hooks as they
are.
"""

import logging
import sys
import traceback
import warnings


def drop_late_news():
    """From now on nothing is said of what Orbax had still to do after a save that failed, in this process."""
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    logging.getLogger('absl').addFilter(is_no_failure_of_orbax)
    logging.getLogger('asyncio').addFilter(is_no_news_of_orbax)
    sys.unraisablehook = _except_late_news(sys.unraisablehook)


def is_no_failure_of_orbax(record) -> bool:
    """A filter of log records: drops what Orbax warns of, and failures in its threads, raised too."""
    return not (record.levelno >= logging.WARNING and '/orbax/' in record.pathname)


def is_no_news_of_orbax(record) -> bool:
    """A filter of what asyncio logs: drops that nobody asked how a write of Orbax or TensorStore ended.

    Where several writes of a save fail, Orbax asks the first only, which is raised.
    """
    said = record.getMessage()
    if 'exception was never retrieved' not in said:
        return True
    # A task names its code, a future the error alone, and a future of several the error and where it was.
    where = ''.join(traceback.format_exception(*record.exc_info)) if record.exc_info else ''
    return not any(name in said + where for name in ('/orbax/', 'tensorstore_spec', '.orbax-checkpoint-tmp'))


def _except_late_news(hook):
    """A hook of errors that nobody can catch, which drops one kind of them.

    Where one write of a save fails, Orbax ends its event loop, and TensorStore, which has the other writes to
    tell of, says from a thread of its own that it is closed.
    """

    def dropping(found):
        if found.exc_type is not RuntimeError or str(found.exc_value) != 'Event loop is closed':
            hook(found)

    return dropping
