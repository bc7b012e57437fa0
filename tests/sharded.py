"""One of several workers that share a folder of runs, on a table or a comparison that trains in seconds.

    python tests/sharded.py WHAT ROOT [SHARD [MOMENT]]

WHAT is `table` or `comparison`. Just before it opens the first object of a bucket whose path contains MOMENT,
the worker is killed.
"""

import json
import os
import signal
import sys

from td_jax import compare
from td_jax.configs import digits
from td_jax.files import lease, workdir
from td_jax.reproduction import cells, jobs, tables

ROWS = {'Train from scratch': {'method': 'supervised'}, 'LD': {'method': 'ld'}, 'FD': {'method': 'fd'}}


def make_small_config():
    """A config that trains in a second."""
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            'num_steps': 6,
            'batch_size': 8,
            'log_every': 2,
            'save_every': 2,
            'diagnostics': False,
            'model.hidden': (5, 3),
            'teacher.model.hidden': (7, 11),
            'teacher.num_steps': 4,
            'teacher.labels': 'probe',
            'communication.hidden': 13,
            'communication.message': 2,
        }
    )
    return config


def make_table(root, only_show, shard=None):
    """Runs or reads the tiny table."""
    tables.TABLES = {
        'tiny': tables.Table(
            'Tiny', 'digits', {'all': {}}, ROWS, 'Train from scratch', students=4, teachers=2
        )
    }
    cells.read_tuned, cells.base_config = lambda name: {}, lambda name: make_small_config()
    return cells.make(['tiny'], ('Drama',), ('CIFAR10',), root, only_show, shard=shard)['tiny']['all']


def make_comparison(root, **options):
    """Runs a comparison with two trials per variant, or joins its parts."""
    return compare.run(
        make_small_config(), root, methods=('ld',), trials=2, seeds=2, search_seeds=1, **options
    )


def die_before(moment):
    """Kills this process just before it opens an object whose path contains `moment`."""
    import gcsfs

    opens = gcsfs.GCSFileSystem._open

    def open_or_die(system, path, *arguments, **named):
        if moment in path:
            os.kill(os.getpid(), signal.SIGKILL)
        return opens(system, path, *arguments, **named)

    gcsfs.GCSFileSystem._open = open_or_die


def main():
    action, root, shard, moment = [*sys.argv[1:], '', ''][:4]
    # Short leases, so that those of killed workers expire soon, and frequent checks of other workers' tasks.
    lease.SECONDS, lease.RENEWAL, jobs.PAUSE = 8.0, 1.0, 0.2
    if moment:
        die_before(moment)
    if action == 'table':
        make_table(workdir.resolve(root), False, jobs.read_shard(shard))
    else:
        record = make_comparison(root, **({'shard': shard} if shard else {}))
        print(json.dumps(record))


if __name__ == '__main__':
    main()
