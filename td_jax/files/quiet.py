"""Drops what Orbax, TensorStore and asyncio print in addition to the error that a save raises.

The commands drop it, because each of their failures is one line. Importing td_jax changes no logger or hook.
"""

import logging
import sys
import traceback
import warnings


def silence_failed_saves():
    """Silences what Orbax prints after a failed save, in this process from now on."""
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    logging.getLogger('absl').addFilter(is_not_orbax_failure)
    logging.getLogger('asyncio').addFilter(is_not_unretrieved_orbax_error)
    sys.unraisablehook = _ignore_closed_loop(sys.unraisablehook)


def is_not_orbax_failure(record) -> bool:
    """A filter of log records: drops warnings of Orbax, and failures in its threads, which it also raises."""
    return not (record.levelno >= logging.WARNING and '/orbax/' in record.pathname)


def is_not_unretrieved_orbax_error(record) -> bool:
    """A filter of asyncio's log: drops errors of writes of Orbax or TensorStore that were never retrieved.

    Where several writes of a save fail, Orbax asks the first only, which is raised.
    """
    message = record.getMessage()
    if 'exception was never retrieved' not in message:
        return True
    # A task names its code, a future the error alone, and a future of several the error and where it was.
    traceback_text = ''.join(traceback.format_exception(*record.exc_info)) if record.exc_info else ''
    return not any(
        name in message + traceback_text for name in ('/orbax/', 'tensorstore_spec', '.orbax-checkpoint-tmp')
    )


def _ignore_closed_loop(hook):
    """Wraps a hook of unraisable errors so that it ignores a closed event loop.

    Where one write of a save fails, Orbax ends its event loop. TensorStore, which then reports the other
    writes, raises in a thread of its own that the loop is closed.
    """

    def filtered_hook(unraisable):
        if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != 'Event loop is closed':
            hook(unraisable)

    return filtered_hook
