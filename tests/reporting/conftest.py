"""Runs as td_jax writes them, without any training."""

import json

import numpy as np
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.data import description
from td_jax.files import metric_log, workdir
from td_jax.training import finished


@pytest.fixture(scope='session')
def write_run(small_config):
    """A function that writes the files of a run into a folder, and returns the folder.

    `values` are those of the seeds, or None for a run without a result; `squared` [seeds, examples] are its
    errors; `lines` those of its metrics; `data` names what it was trained on; other
    arguments are changes of the config.
    """

    def write(
        folder, values, squared=None, lines=(), units=None, teacher=None, metric='rmse', data=None, **changes
    ):
        folder = epath.Path(folder)
        folder.mkdir(parents=True)
        changes = {'dataset__split': 'validation', **changes}
        if values is not None:
            changes['num_seeds'] = len(values)
        config = small_config(**changes)
        workdir.write(folder / workdir.CONFIG, config_lib.to_json(config))
        if data:
            content = {'training examples': {'count': 3, 'sha256': data}}
            described = {key: {} for key in description.KEYS} | {'label_names': [], 'content': content}
            workdir.write(folder / workdir.DATA, json.dumps({'student': described}))
        workdir.write(folder / metric_log.FILE, ''.join(json.dumps(line) + '\n' for line in lines))
        if values is None:
            return folder
        seeds = [config.seed + i * config.seed_step for i in range(len(values))]
        result = {
            'method': config.method,
            'dataset': 'some data',
            'metric': metric,
            'split': config.dataset.split,
            'values': list(values),
            'mean': float(np.mean(values)),
            'stderr': None,
            'steps': config.num_steps,
            'seeds': seeds,
            'teacher': teacher and 0.5,
            'teacher_fingerprint': teacher,
            'versions': {'td_jax': '0'},
            'groups': {},
        }
        if squared is not None:
            finished.write_errors(folder, np.asarray(squared, np.float32), units, result)
        workdir.write(folder / workdir.RESULT, json.dumps(result))
        return folder

    return write
