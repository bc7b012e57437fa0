"""How the knobs of a method are chosen, on made-up scores."""

import itertools
import types

import pytest

from td_jax import config as config_lib
from td_jax.files import metric_log
from td_jax.reproduction import cells, tuning
from td_jax.training import evaluation

SPACE = {'a': (1, 2, 3), 'b': ('x', 'y')}


def test_draw_gives_different_points_of_the_grid():
    grid = [dict(zip(SPACE, point, strict=True)) for point in itertools.product(*SPACE.values())]
    drawn = tuning.draw(SPACE, 4)
    assert len(drawn) == 4
    assert all(point in grid for point in drawn)
    assert len({tuple(point.values()) for point in drawn}) == 4
    assert drawn == tuning.draw(SPACE, 4)
    assert drawn == tuning.draw(SPACE, 6)[:4]


def test_draw_ends_with_the_grid():
    assert len(tuning.draw(SPACE, 100)) == 6


@pytest.mark.parametrize(('less_is_better', 'expected'), [(True, (20, 0.5)), (False, (30, 0.9))])
def test_best_step(less_is_better, expected):
    lines = [
        {'step': 10, 'rmse': 0.7},
        {'step': 10, 'train_loss': 0.1},
        {'step': 20, 'rmse': 0.5},
        {'step': 30, 'rmse': 0.9},
        {'step': 40, 'rmse': 0.5},
    ]
    assert tuning.best_step(lines, 'rmse', less_is_better) == expected


@pytest.mark.parametrize('task', evaluation.METRICS)
@pytest.mark.parametrize(
    ('start', 'best_rate', 'best_is_first'),
    [
        (tuning.draw(tuning.COMMON, 1)[0], 3e-3, False),  # the point that the second stage would try first
        ({'optimizer.learning_rate': 2e-3}, 3e-3, False),
        ({'optimizer.learning_rate': 2e-3}, 2e-3, True),
    ],
)
@pytest.mark.parametrize('method', tuning.SPACES)
def test_every_method_has_as_many_trials_and_two_stages(
    monkeypatch, tmp_path, small_config, method, start, best_rate, best_is_first, task
):
    config, tried = small_config(method=method, **start), []
    metric, _, _, less_is_better = evaluation.METRICS[task]

    def score(knobs):
        """Best at one learning rate, then at one dropout, then at the largest weights."""
        weights = sum(value for key, value in knobs.items() if f'{method}.weights.' in key)
        good = 2 * (knobs['optimizer.learning_rate'] == best_rate) + (knobs['model.dropout'] == 0.2)
        gain = 0.1 * good + 0.001 * weights
        return 1 - gain if less_is_better else gain

    def read(folder):
        worst = 2.0 if less_is_better else -1.0
        curve = {3: worst, 4: score(tried[-1]), 6: worst}
        return [{'step': step, f'validation_{metric}': value} for step, value in curve.items()]

    source = types.SimpleNamespace(task=task)
    monkeypatch.setitem(tuning.SOURCES, 'digits', lambda config, task: source)
    monkeypatch.setattr(cells, 'run_cell', lambda root, run: tried.append(config_lib.flatten(run)))
    monkeypatch.setattr(metric_log, 'read', read)
    space, better = tuning.SPACES[method], min if less_is_better else max
    record = tuning.tune_one(config, space, 12, tmp_path)

    assert len(tried) == len(record['trials']) == 12
    assert len({str(knobs) for knobs in tried}) == 12
    assert record['trials'] == [score(knobs) for knobs in tried]
    assert record['score'] == better(record['trials'])
    best = record['trials'].index(record['score'])
    assert record['values'] == {**{key: tried[best][key] for key in (*tuning.COMMON, *space)}, 'num_steps': 4}
    if not space:
        return

    # Of 12 trials 9 are for the weights, or as many as there are.
    count = min(9, len(list(itertools.product(*space.values()))))
    first, second = tried[:count], tried[count:]
    assert (best < count) == best_is_first
    start = config_lib.flatten(config)
    assert all(knobs[key] == start[key] for key in tuning.COMMON for knobs in first)
    assert len({tuple(knobs[key] for key in space) for knobs in first}) == count
    best_first = better(first, key=score)
    assert all(knobs[key] == best_first[key] for key in space for knobs in second)


@pytest.mark.parametrize('trials', [2, 3, 5])
@pytest.mark.parametrize('method', tuning.SPACES)
def test_few_trials_are_as_many_for_every_method(monkeypatch, tmp_path, small_config, method, trials):
    lines = [{'step': 4, 'validation_accuracy': 0.5}]
    monkeypatch.setattr(cells, 'run_cell', lambda root, run: None)
    monkeypatch.setattr(metric_log, 'read', lambda folder: lines)
    record = tuning.tune_one(small_config(method=method), tuning.SPACES[method], trials, tmp_path)
    assert record['trials'] == [0.5] * trials
