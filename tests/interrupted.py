"""Runs td_jax.main in a process to which something happens at an exact moment.

    python tests/interrupted.py ACTION MOMENT COUNT FLAGS...

ACTION happens the COUNT-th time that MOMENT comes. It is a part of a path: just before the process opens,
makes, moves or removes a file whose path contains it. Or it is gs://PART: just before it opens an object of a
bucket whose path contains PART. Or it is MODULE:FUNCTION, of td_jax: as the function is called.
"""

import importlib
import os
import resource
import runpy
import signal
import sys

EVENTS = ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir')
ACTIONS = {
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'interrupt': lambda: os.kill(os.getpid(), signal.SIGINT),
    # As on a full disk, no file can grow from now on.
    'fill': lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)),
}


def main():
    _, action, moment, count, *flags = sys.argv
    run(action, moment, int(count), flags)


def run(action, moment, left, flags):
    """Runs td_jax.main, to which the action happens once `left` moments have come."""

    def count_moment():
        nonlocal left
        left -= 1
        if left == 0:
            ACTIONS[action]()

    def count_event(event, arguments):
        if event in EVENTS and any(isinstance(path, str) and moment in path for path in arguments):
            count_moment()

    if moment.startswith('gs://'):
        import gcsfs

        from td_jax.files import lease

        # Who comes after a kill waits until the lease of the dead has expired.
        lease.SECONDS, lease.RENEWAL = 3.0, 0.5
        opens = gcsfs.GCSFileSystem._open

        def open_and_count(system, path, *arguments, **named):
            if moment.removeprefix('gs://') in path:
                count_moment()
            return opens(system, path, *arguments, **named)

        gcsfs.GCSFileSystem._open = open_and_count
    elif moment.startswith('td_jax.'):
        module, _, name = moment.partition(':')
        module = importlib.import_module(module)
        function = getattr(module, name)

        def call_and_count(*arguments, **named):
            count_moment()
            return function(*arguments, **named)

        setattr(module, name, call_and_count)
    else:
        sys.addaudithook(count_event)
    sys.argv = ['main.py', *flags]
    runpy.run_module('td_jax.main', run_name='__main__')


if __name__ == '__main__':
    main()
