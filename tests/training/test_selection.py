"""Keeping the best step, and early stopping."""

import json
import shutil

import numpy as np
import pytest

from td_jax import config as config_lib
from td_jax.devices import processes
from td_jax.errors import Stopped
from td_jax.files import metric_log
from td_jax.models import base
from td_jax.training import assembly, loop, selection, teachers, train_step
from td_jax.training import finished as finished_runs
from td_jax.training.run import describe, train

# --- Scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('less_is_better', 'scores', 'best', 'since'),
    [
        (True, [3.0, 2.0, 2.5, 2.0, 4.0], 4, 3),  # an equal score is not better
        (False, [3.0, 2.0, 2.5, 4.0, 4.0], 8, 1),
        (False, [1.0], 2, 0),
    ],
)
def test_the_first_of_the_best_scores_is_kept(small_config, less_is_better, scores, best, since):
    best_so_far = selection.NO_VALIDATION
    for i, score in enumerate(scores):
        best_so_far = selection.update(best_so_far, 2 * (i + 1), score, less_is_better, small_config())
    assert (best_so_far.step, best_so_far.since, best_so_far.validated) == (best, since, 2 * len(scores))
    # A continued run may validate the same step again.
    assert (
        selection.update(best_so_far, best_so_far.validated, 0.0, less_is_better, small_config())
        == best_so_far
    )
    assert selection.Best(**json.loads(json.dumps(best_so_far._asdict()))) == best_so_far


def test_a_ramp_up_does_not_wear_out_the_patience(small_config):
    config, best_so_far = small_config(num_steps=20, td__ramp_up=(2, 4), patience=2), selection.NO_VALIDATION
    has_ended = []
    for step in range(2, 14, 2):
        best_so_far = selection.update(best_so_far, step, 1.0, True, config)
        has_ended.append(selection.ends(best_so_far, config))
    # From step 6 on the student is trained again.
    assert has_ended == [False, False, False, False, True, True]


# --- A run -----------------------------------------------------------------------------------------

EVERY = 2


@pytest.fixture(scope='module')
def curve_config(small_config):
    """A function (**changes) -> the config of two students whose validation score rises and falls."""

    def make(**changes):
        settings = {
            'method': 'supervised',
            'dataset__split': 'validation',
            'optimizer__learning_rate': 0.1,
            'seed': 6,
            'num_steps': 11,
            'save_every': 5,
            'eval_every': EVERY,
            'log_every': 100,
        }
        return small_config(**{**settings, **changes})

    return make


@pytest.fixture(scope='module')
def best_run(curve_config, tmp_path_factory):
    """(workdir, result) of a run that keeps its best step."""
    folder = tmp_path_factory.mktemp('best') / 'run'
    return folder, train(curve_config(keep='best'), folder)


def read_curve(folder):
    """{step: validation score, mean over the seeds}."""
    lines = metric_log.read(folder)
    return {line['step']: line['validation_accuracy'] for line in lines if 'validation_accuracy' in line}


def assert_same_parameters(folder, other):
    """Asserts that two runs have the same parameters of all seeds."""
    for seed in range(2):
        one, two = (finished_runs.read_parameters(path, seed) for path in (folder, other))
        for layer, arrays in one[train_step.STUDENT].items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, two[train_step.STUDENT][layer][name])


def test_the_best_step_is_what_a_finished_run_gives(best_run, curve_config, tmp_path):
    folder, result = best_run
    scores = read_curve(folder)
    assert list(scores) == [2, 4, 6, 8, 10, 11]
    best_step = max(scores, key=scores.get)
    # Otherwise this test would be empty.
    assert best_step not in (2, 11)
    assert (result['steps'], result['kept_step'], result['mean']) == (11, best_step, scores[best_step])
    assert f'11 steps, kept is step {best_step})' in describe(result)
    # A run that ends there has the same students.
    short = train(curve_config(num_steps=best_step), tmp_path)
    assert short['values'] == result['values']
    assert 'kept_step' not in short
    assert_same_parameters(folder, tmp_path)
    errors, of_short = (finished_runs.read_errors(path) for path in (folder, tmp_path))
    np.testing.assert_array_equal(errors.values, of_short.values)


def test_a_last_step_that_is_best_is_kept(best_run, curve_config, tmp_path):
    best = best_run[1]['kept_step']
    result = train(curve_config(keep='best', num_steps=best), tmp_path)
    assert (result['kept_step'], result['mean']) == (best, best_run[1]['mean'])
    assert 'kept is step' not in describe(result)
    assert_same_parameters(tmp_path, best_run[0])


@pytest.mark.parametrize('step', [5, 7, 11])
def test_a_run_that_is_killed_keeps_its_step(best_run, curve_config, tmp_path, outcome, monkeypatch, step):
    """It is killed after the best step is trained and before anything else is saved."""
    log = loop.Loop._log

    def log_and_kill(self, file, at, *rest):
        if at >= step:
            raise KeyboardInterrupt
        log(self, file, at, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Loop, '_log', log_and_kill)
        train(curve_config(keep='best'), tmp_path)
    train(curve_config(keep='best'), tmp_path)
    assert outcome(tmp_path) == outcome(best_run[0])


def test_a_longer_run_is_the_run_at_once(best_run, curve_config, tmp_path, outcome):
    """Also with a validation at its old end, which then is one of many."""
    for steps in (6, 7, 11):
        train(curve_config(keep='best', num_steps=steps), tmp_path)
    longer, at_once = outcome(tmp_path), outcome(best_run[0])
    # The additional validation of the shorter run stays in the log.
    longer['metrics'] = [line for line in longer['metrics'] if line['step'] != 7]
    at_once['metrics'] = [line for line in at_once['metrics'] if line['step'] != 7]
    longer['metrics'] = [line for line in longer['metrics'] if 'validation_accuracy' in line]
    at_once['metrics'] = [line for line in at_once['metrics'] if 'validation_accuracy' in line]
    assert longer == at_once


# --- Early stopping --------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def early_run(curve_config, tmp_path_factory):
    """(workdir, result) of a run that stops early."""
    folder = tmp_path_factory.mktemp('early') / 'run'
    return folder, train(curve_config(keep='best', patience=2, num_steps=60), folder)


def test_a_run_ends_where_its_patience_does(early_run, best_run, curve_config, tmp_path):
    folder, result = early_run
    scores = read_curve(folder)
    last = max(scores)
    assert last < 60
    assert (result['steps'], result['ended_early']) == (last, True)
    best_step = max(scores, key=scores.get)
    assert (result['kept_step'], last) == (best_step, best_step + 2 * EVERY)
    # Until then it is the same run.
    for step, score in read_curve(best_run[0]).items():
        assert step > last or step % EVERY or scores[step] == score
    # If it keeps the last step, it is the same as the shorter run.
    last_kept_result = train(curve_config(patience=2, num_steps=60), tmp_path / 'ended')
    train(curve_config(num_steps=last), tmp_path / 'short')
    assert 'kept_step' not in last_kept_result
    assert last_kept_result['mean'] == scores[last]
    assert_same_parameters(tmp_path / 'ended', tmp_path / 'short')


def test_a_run_that_ended_early_is_finished(early_run, curve_config, tmp_path, outcome):
    copied_run = shutil.copytree(early_run[0], tmp_path / 'run')
    for steps in (60, 80):
        assert train(curve_config(keep='best', patience=2, num_steps=steps), copied_run) == early_run[1]
    # If it was killed before its result was written, it does not train further.
    (copied_run / 'result.json').unlink()
    train(curve_config(keep='best', patience=2, num_steps=60), copied_run)
    assert outcome(copied_run) == outcome(early_run[0])


def test_a_run_that_is_stopped_does_not_begin_its_patience_anew(
    early_run, curve_config, tmp_path, outcome, monkeypatch
):
    config = curve_config(keep='best', patience=2, num_steps=60)
    stop = early_run[1]['steps'] - 1
    calls = []
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        # The criterion is checked after each dispatch, which may have several steps.
        patch.setattr(loop._Pace, 'measure', lambda *arguments: None)
        patch.setattr(processes, 'is_asked_to_stop', lambda: calls.append(1) or len(calls) == stop)
        train(config, tmp_path)
    train(config, tmp_path)
    assert outcome(tmp_path)['arrays'] == outcome(early_run[0])['arrays']
    assert outcome(tmp_path)['result'] == outcome(early_run[0])['result']


def test_a_teacher_teaches_with_what_it_kept(early_run, curve_config, tmp_path):
    """A teacher that is trained for a run keeps its last step."""
    folder, result = early_run
    changes = {'method': 'fitnet', 'teacher__dataset__classes': (5, 6, 7, 8, 9)}
    changes |= {'teacher__model__hidden': (5, 3), 'teacher__dataset__examples_per_class': 10}
    config = curve_config(teacher__checkpoint=str(folder), **changes)
    source = assembly.load_source(config, config.dataset)
    teacher = teachers.load_existing(config, tmp_path, teachers.source_of(config, source))
    inputs = source.inputs(source.tables, source.evaluation, None)
    predictions = base.activations(teacher.model, teacher.params, inputs).logits
    is_right = np.argmax(predictions, axis=1) == source.evaluation['labels']
    np.testing.assert_allclose(is_right.mean(), result['values'][0], rtol=1e-6)
    inner = config_lib.teacher_run(curve_config(keep='best', patience=3, **changes))
    assert (inner.keep, inner.patience) == ('last', 0)
