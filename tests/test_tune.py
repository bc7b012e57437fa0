"""How the knobs of a method are chosen, on made-up scores."""

import itertools

import pytest

from td_jax import config as config_lib
from td_jax import metric_log, reproduce, tune

SPACE = {'a': (1, 2, 3), 'b': ('x', 'y')}


def test_draw_gives_different_points_of_the_grid():
    grid = [dict(zip(SPACE, point, strict=True)) for point in itertools.product(*SPACE.values())]
    drawn = tune.draw(SPACE, 4)
    assert len(drawn) == 4
    assert all(point in grid for point in drawn)
    assert len({tuple(point.values()) for point in drawn}) == 4
    assert drawn == tune.draw(SPACE, 4)
    assert drawn == tune.draw(SPACE, 6)[:4]


def test_draw_ends_with_the_grid():
    assert len(tune.draw(SPACE, 100)) == 6


@pytest.mark.parametrize(('less_is_better', 'expected'), [(True, (20, 0.5)), (False, (30, 0.9))])
def test_best_step(less_is_better, expected):
    lines = [
        {'step': 10, 'rmse': 0.7},
        {'step': 10, 'train_loss': 0.1},
        {'step': 20, 'rmse': 0.5},
        {'step': 30, 'rmse': 0.9},
        {'step': 40, 'rmse': 0.5},
    ]
    assert tune.best_step(lines, 'rmse', less_is_better) == expected


@pytest.mark.parametrize('method', tune.SPACES)
def test_every_method_has_as_many_trials_and_two_stages(monkeypatch, tmp_path, small_config, method):
    config, tried = small_config(method=method, optimizer__learning_rate=1e-3), []

    def score(knobs):
        """Best at one learning rate, one dropout and the largest weights."""
        weights = sum(value for key, value in knobs.items() if f'{method}.weights.' in key)
        good = (knobs['optimizer.learning_rate'] == 3e-3) + (knobs['model.dropout'] == 0.2)
        return 0.5 + 0.1 * good + 0.001 * weights

    def read(folder):
        return [{'step': 3, 'validation_accuracy': 0.1}, {'step': 4, 'validation_accuracy': score(tried[-1])}]

    monkeypatch.setattr(reproduce, 'run_cell', lambda root, run: tried.append(config_lib.flatten(run)))
    monkeypatch.setattr(metric_log, 'read', read)
    space = tune.SPACES[method]
    record = tune.tune_one(config, space, 12, tmp_path)

    assert len(tried) == len(record['trials']) == 12
    assert record['trials'] == [score(knobs) for knobs in tried]
    assert record['score'] == max(record['trials'])
    best = tried[record['trials'].index(record['score'])]
    assert record['values'] == {**{key: best[key] for key in (*tune.COMMON, *space)}, 'num_steps': 4}

    start = {key: config_lib.flatten(config)[key] for key in tune.COMMON}
    first = [knobs for knobs in tried if all(knobs[key] == start[key] for key in tune.COMMON)]
    if space:
        assert tried[: len(first)] == first
        weights = {tuple(knobs[key] for key in space) for knobs in tried[len(first) :]}
        best_first = max(first, key=score)
        assert weights == {tuple(best_first[key] for key in space)}
