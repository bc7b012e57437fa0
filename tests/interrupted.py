"""Runs td_jax.main in a process to which something happens at an exact moment.

    python tests/interrupted.py ACTION PART COUNT FLAGS...

ACTION happens just before the process opens, makes, moves or removes a file whose path contains PART, the
COUNT-th time that it does so.
"""

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
    _, action, part, count, *flags = sys.argv
    left = int(count)

    def watch(event, arguments):
        nonlocal left
        if event in EVENTS and any(isinstance(path, str) and part in path for path in arguments):
            left -= 1
            if left == 0:
                ACTIONS[action]()

    sys.addaudithook(watch)
    sys.argv = ['main.py', *flags]
    runpy.run_module('td_jax.main', run_name='__main__')


if __name__ == '__main__':
    main()
