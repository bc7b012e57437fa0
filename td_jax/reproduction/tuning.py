"""Chooses the knobs of each method on the validation slice; the test period is never read.

A random search of the same number of trials for every method, in two stages: the weights of its terms, at
the learning rate, dropout and weight decay that the student from scratch chose, and then these at the best
weights. (Drawn all at once, a good learning rate meets good weights too rarely.) Each trial is a run of
td_jax.training.run on the training period without its last tenth, evaluated there every `eval_every` steps;
the best mean over the seeds chooses the trial and, as the learning rate is constant, the number of steps.
Restartable: a finished trial is read from its folder.
"""

import itertools
import json

import numpy as np
from etils import epath

from td_jax import config as config_lib
from td_jax.data import SOURCES
from td_jax.errors import UserError
from td_jax.files import metric_log, workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, tables
from td_jax.training import evaluation

_WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# What the second stage draws from, for every method; the only one of supervised runs.
COMMON = {
    'optimizer.learning_rate': (3e-4, 1e-3, 3e-3),
    'model.dropout': (0.0, 0.2, 0.4),
    'optimizer.weight_decay': (0.0, 1e-2),
}
# What the first stage draws from for one of them, and its share of the trials.
SPACES = {
    'supervised': {},
    'ld': {'ld.weights.logits': _WEIGHTS},
    'fd': {'fd.weights.feature': _WEIGHTS},
    'fitnet': {'fitnet.weights.state': _WEIGHTS},
    'hybrid': {'hybrid.weights.logits': _WEIGHTS, 'hybrid.weights.feature': _WEIGHTS},
    'td': {
        'td.weights.interact': _WEIGHTS,
        'td.weights.message': _WEIGHTS,
        'td.weights.state': _WEIGHTS,
        'td.rounds': (1, 2, 3),
    },
}
FIRST_STAGE = 0.75
# The modules of configs/ whose runs are short enough to be searched.
CONFIGS = ('movielens', 'digits', 'vit_tiny_cifar10')
TEACHER = 'teacher'


def draw(space: dict, trials: int) -> list[dict]:
    """The values of each trial: different points of the grid that a space spans, the same in every call."""
    grid = list(itertools.product(*space.values()))
    chosen = np.random.default_rng(0).permutation(len(grid))[:trials]
    return [dict(zip(space, grid[i], strict=True)) for i in chosen]


def best_step(lines: list[dict], metric: str, less_is_better: bool):
    """(step, value) of the best validation in the lines of a metrics.jsonl."""
    curve = [(line[metric], line['step']) for line in lines if metric in line]
    value, step = min(curve) if less_is_better else max(curve)
    return step, value


def tune_one(config, space: dict, trials: int, root: epath.Path) -> dict:
    """Runs the trials of one method on one column.

    Args:
      config: where the first stage stands.
      space: what the first stage draws from; empty for a method without weights.
      trials: of both stages together.
      root: folder of all trials.

    Returns:
      {'values': the chosen knobs with num_steps, 'score': their validation metric, 'trials': all scores}
    """
    task = SOURCES[config.dataset.name](config.dataset, config.dataset).task
    metric, _, _, less_is_better = evaluation.METRICS[task]
    sign = 1 if less_is_better else -1
    start = {key: config_lib.flatten(config)[key] for key in COMMON}
    outcomes = []

    def try_out(values):
        run = config.copy_and_resolve_references()
        run.update_from_flattened_dict(values)
        cells.run_cell(root, run)
        lines = metric_log.read(cells.run_folder(root, run))
        step, score = best_step(lines, f'validation_{metric}', less_is_better)
        outcomes.append((sign * score, {**values, 'num_steps': step}))

    def best():
        return min(outcomes, key=lambda outcome: outcome[0])

    if space:
        for weights in draw(space, int(FIRST_STAGE * trials)):
            try_out({**start, **weights})
    weights = {key: best()[1][key] for key in space}
    # The point that the first stage stood on is known already.
    common = [values for values in draw(COMMON, trials + 1) if not space or values != start]
    for values in common[: trials - len(outcomes)]:
        try_out({**values, **weights})
    score, values = best()
    return {'values': values, 'score': sign * score, 'trials': [sign * score for score, _ in outcomes]}


def check(name: str, columns, methods, target: epath.Path):
    """Refuses what cannot be tuned.

    Raises:
      UserError: a name that is not known, or a file that cannot be written.
    """
    config_lib.check_choice('--config', name, CONFIGS)
    for method in methods:
        config_lib.check_choice('--methods', method, (TEACHER, *objectives.METHODS))
    dataset = cells.base_config(name).dataset.name
    for column in columns:
        config_lib.check_choice('--columns', column, tables.GENRES if dataset == 'movielens' else (dataset,))
    if not workdir.is_in_bucket(target) and not target.parent.is_dir():
        raise UserError(f'--output {target} cannot be written: its folder is missing.')


def tune(name, columns, methods, trials, seeds, steps, root: epath.Path, target: epath.Path):
    """Tunes some methods on some columns; what was chosen is written after each of them.

    Args:
      name: of CONFIGS.
      columns: genres, or the data set's name.
      methods: names, TEACHER among them or not; it is tuned first.
      trials: of each method.
      seeds: of each trial; the teacher has one.
      steps: of the longest run.
      root: folder of all trials.
      target: JSON file that gets the choices; others in it stay.

    Yields:
      (column or TEACHER, method or TEACHER, what `tune_one` returns), as they come

    Raises:
      UserError: what `check` or a run raises.
    """
    check(name, columns, methods, target)
    choices = workdir.read_json(target) or {}

    def keep():
        workdir.write(target, json.dumps(choices, indent=2, sort_keys=True) + '\n')

    def prepared():
        config = cells.base_config(name)
        config.dataset.split = 'validation'
        config.num_seeds, config.num_steps, config.eval_every = seeds, steps, 50
        config.log_every = config.save_every = steps
        return config

    if TEACHER in methods:
        config = config_lib.teacher_run(prepared())
        config.num_steps, config.num_seeds = steps, 1
        record = tune_one(config, {}, trials, root)
        choices[TEACHER] = {f'teacher.{key}': value for key, value in record['values'].items()}
        keep()
        yield TEACHER, TEACHER, record
    for column in columns:
        for method in methods:
            if method == TEACHER:
                continue
            config = prepared()
            if config.dataset.name == 'movielens':
                config.dataset.genre = column
            config.method = method
            # A method starts where the student from scratch ended; the longest run is for all the same.
            scratch = choices.get(column, {}).get('supervised', {})
            known = {key: value for key, value in scratch.items() if key in COMMON}
            cells.apply_tuned(config, {TEACHER: choices.get(TEACHER, {}), column: {method: known}}, method)
            record = tune_one(config, SPACES[method], trials, root)
            choices.setdefault(column, {})[method] = record['values']
            keep()
            yield column, method, record
