"""Runs td_jax.main in a process to which something happens at an exact moment.

    python tests/interrupted.py ACTION MOMENT COUNT FLAGS...
    python tests/interrupted.py kill MOMENTS FLAGS...

MOMENTS are JSON, [[MOMENT, COUNT], ...]: one process after the other is killed, and their exit codes are
printed. They are forked off one that has imported what a run does and has not begun to use JAX, so that a
test waits for runs and not for imports.

ACTION happens the COUNT-th time that MOMENT comes. It is a part of a path: just before the process opens,
makes, moves or removes a file whose path contains it. Or it is gs://PART: just before it opens an object of a
bucket whose path contains PART. Or it is MODULE:FUNCTION, of td_jax: as the function is called.
"""

import importlib
import json
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
    _, action, moment, *others = sys.argv
    if moment.startswith('['):
        print(json.dumps(killed(json.loads(moment), others)))
    else:
        count, *flags = others
        run(action, moment, int(count), flags)


def killed(moments, flags):
    """The exit codes of processes that were to be killed, one after the other."""
    for name in ('td_jax.training.run', 'clu.metric_writers', 'sklearn.datasets'):
        importlib.import_module(name)
    codes = []
    for moment, count in moments:
        child = os.fork()
        if child == 0:
            run('kill', moment, count, flags)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


def run(action, moment, left, flags):
    """Runs td_jax.main, to which the action happens once `left` moments have come."""

    def has_come():
        nonlocal left
        left -= 1
        if left == 0:
            ACTIONS[action]()

    def watch(event, arguments):
        if event in EVENTS and any(isinstance(path, str) and moment in path for path in arguments):
            has_come()

    if moment.startswith('gs://'):
        import gcsfs

        opens = gcsfs.GCSFileSystem._open

        def opened(system, path, *arguments, **named):
            if moment.removeprefix('gs://') in path:
                has_come()
            return opens(system, path, *arguments, **named)

        gcsfs.GCSFileSystem._open = opened
    elif moment.startswith('td_jax.'):
        module, _, name = moment.partition(':')
        module = importlib.import_module(module)
        function = getattr(module, name)

        def watched(*arguments, **named):
            has_come()
            return function(*arguments, **named)

        setattr(module, name, watched)
    else:
        sys.addaudithook(watch)
    sys.argv = ['main.py', *flags]
    runpy.run_module('td_jax.main', run_name='__main__')


if __name__ == '__main__':
    main()
