"""Control teachers without useful knowledge, in the step of a run."""

import functools
import os

import jax
import numpy as np
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.data import base as data
from td_jax.devices import fingerprint, sharding
from td_jax.errors import UserError
from td_jax.models import base
from td_jax.training import assembly, dispatch, teachers, train_step
from td_jax.training.run import train
from tests import forked


class Case:
    """A run on digits with one seed before its first step, with an untrained teacher that may be changed."""

    def __init__(self, config, path, change_teacher=lambda params: params):
        self.config, self.path = config, path
        self.source, theirs = (
            assembly.load_source(config, task) for task in (config.dataset, config.teacher.dataset)
        )
        teacher = assembly.untrained_teacher(config, theirs)
        self.teacher = teacher._replace(params=change_teacher(teacher.params))
        self.keys = dispatch.seed_keys(config)
        source = self.source
        pool, rows, _ = dispatch.select_examples(source, config)
        self.train = examples = data.take(pool, rows[0])
        if path == 'stream':
            stream = data.TrainStream(
                len(examples['labels']),
                data.one_example(source),
                lambda seed, step, size, rows: iter([data.take(examples, np.arange(size))]),
                pass_over=lambda number: examples,
            )
            source = source._replace(train=stream)
        self.run = assembly.assemble(config, source, self.teacher, sharding.make_mesh(config))
        self.state = self.run.add_probe(self.run.init(self.keys))
        self.before = jax.tree.map(np.array, self.state)

    def examples(self):
        """The examples of the first step."""
        rows = np.arange(self.config.batch_size)
        if self.path != 'stream':
            (order,) = self.run.feed(self.keys, 0).labelled
            rows = data.batch_rows(order, 0, self.config.batch_size)
        return data.take(self.train, np.asarray(rows))

    @functools.cached_property
    def step(self):
        """The step (state, key, batch, hyperparameters) of the same run without the control."""
        plain = self.config.copy_and_resolve_references()
        plain.teacher.control = 'none'
        student = assembly.build_model(plain, plain.model, self.source)
        step = train_step.make_step(student, self.source.task, len(self.source.label_names), plain)

        def upper(s):
            return self.teacher.model.upper(self.teacher.params, s)

        return jax.jit(lambda state, key, *others: step.update(state, key, upper, *others))

    def stepped(self):
        """Runs a step: (parameters after it, {metric: value})."""
        progress, _ = self.run.run(self.run.begin(self.state), self.run.feed(self.keys, 0), self.keys, 0, 1)
        assert progress.finite
        return jax.tree.map(lambda x: np.array(x)[0], (progress.state.params, progress.sums))


def compute_expected_step(case, shift, keeps_predictions=False):
    """The same on a batch made by hand, with shifted rows of the teacher, or all but its predictions."""
    config, examples = case.config, case.examples()
    inputs = case.teacher.source.inputs(case.teacher.source.tables, examples, None)
    activations = base.activations(case.teacher.model, case.teacher.params, inputs)
    rows = (np.arange(config.batch_size) + shift) % config.batch_size
    predicted_rows = np.arange(config.batch_size) if keeps_predictions else rows
    probe_logits = None
    if case.state.probe is not None:
        probe_params = jax.tree.map(lambda x: np.asarray(x)[0], case.before.probe)
        probe_logits = np.asarray(activations.upper) @ probe_params['kernel'] + probe_params['bias']
        assert np.ptp(probe_logits) > 1
        probe_logits = probe_logits[predicted_rows]
    batch = train_step.Batch(
        case.source.inputs(case.source.tables, examples, None),
        examples['labels'],
        np.ones(config.batch_size, np.float32),
        jax.tree.map(lambda x: x[rows], activations)._replace(logits=activations.logits[predicted_rows]),
        probe_logits,
    )
    state = jax.tree.map(lambda x: x[0], case.before)
    _, _, _, training_key = dispatch.split_key(case.keys[0])
    state, metrics = case.step(state, training_key, batch, train_step.read_hyperparameters(config))
    return state.params, metrics


def assert_same_step(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('method', 'path', 'micro_batches'),
    [
        ('fd', 'clean', 1),
        ('hybrid', 'varied', 2),
        pytest.param('td', 'clean', 2, marks=pytest.mark.long),
        pytest.param('td', 'varied', 1, marks=pytest.mark.long),
        pytest.param('td', 'stream', 2, marks=pytest.mark.long),
        pytest.param('hybrid', 'stream', 1, marks=pytest.mark.long),
    ],
)
def test_a_shuffled_teacher_speaks_of_the_next_example(comparable_config, method, path, micro_batches):
    """Its states and predictions are those of the next example; its layers are unchanged."""
    config = comparable_config(
        method=method,
        num_seeds=1,
        micro_batches=micro_batches,
        teacher__control='shuffled',
        teacher__inputs='clean' if path == 'clean' else 'varied',
    )
    case = Case(config, path)
    assert (case.run.constants.teacher_states is not None) == (path == 'clean')
    actual = case.stepped()
    assert_same_step(actual, compute_expected_step(case, 1))
    own = compute_expected_step(case, 0)
    terms = set(config[method].weights) & set(own[1])
    assert terms
    assert all(not np.allclose(actual[1][name], own[1][name], rtol=1e-3) for name in terms - {'interact'})


@pytest.mark.parametrize(
    ('method', 'labels'),
    [('hybrid', 'probe'), pytest.param('td', 'auxiliary', marks=pytest.mark.long)],
)
def test_shuffled_states_leave_an_example_its_predictions(comparable_config, method, labels):
    changes = {'teacher__control': 'shuffled_states', 'teacher__labels': labels}
    config = comparable_config(method=method, num_seeds=1, **changes)
    config.td.weights.logits = 3.0
    case = Case(config, 'clean')
    actual = case.stepped()
    assert_same_step(actual, compute_expected_step(case, 1, keeps_predictions=True))
    own, all_shuffled = compute_expected_step(case, 0), compute_expected_step(case, 1)
    np.testing.assert_allclose(actual[1]['logits'], own[1]['logits'], rtol=1e-4)
    assert not np.allclose(actual[1]['logits'], all_shuffled[1]['logits'], rtol=1e-3)
    of_states = 'state' if method == 'td' else 'feature'
    assert not np.allclose(actual[1][of_states], own[1][of_states], rtol=1e-3)


@pytest.mark.long
def test_a_teacher_who_says_the_same_of_all_cannot_be_shuffled(comparable_config):
    """If all of its parameters are 0, so are its states."""
    ends = []
    for control in ('none', 'shuffled'):
        config = comparable_config(num_seeds=1, teacher__control=control)
        ends.append(Case(config, 'clean', lambda params: jax.tree.map(np.zeros_like, params)).stepped())
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_shuffle_within_their_own_batches(comparable_config):
    changes = {'teacher__control': 'shuffled', 'method': 'fd'}
    together = Case(comparable_config(num_seeds=2, **changes), 'clean')
    progress, _ = together.run.run(
        together.run.begin(together.state), together.run.feed(together.keys, 0), together.keys, 0, 1
    )
    alone = Case(comparable_config(num_seeds=1, seed=1, **changes), 'clean').stepped()
    assert_same_step(jax.tree.map(lambda x: np.array(x)[1], progress.state.params), alone[0])


@pytest.mark.long
def test_an_untrained_teacher_is_that_of_its_runs_beginning(small_config, tmp_path):
    """It is not trained, and depends on its seed."""
    prints = {}
    for seed in (0, 1):
        config = small_config(teacher__control='untrained', teacher__seed=seed, num_steps=2)
        folder = epath.Path(tmp_path / f'{seed}')
        result = train(config, folder)
        assert not (folder / 'teacher').exists()
        source = assembly.load_source(config, config.teacher.dataset)
        run_config = config_lib.teacher_run(config)
        run = assembly.assemble(run_config, source, None, sharding.make_mesh(run_config))
        initial = jax.tree.map(lambda x: x[0], run.init(dispatch.seed_keys(run_config)).params['student'])
        assert result['teacher_fingerprint'] == fingerprint.of(initial)
        prints[seed] = result['teacher_fingerprint']
        # It is made again when the run is read.
        finished = teachers.load_finished_with_teacher(folder)
        assert fingerprint.of(finished.teacher.params) == prints[seed]
        assert train(config, folder) == result
    assert prints[0] != prints[1]


def test_an_untrained_teacher_is_another_run(small_config):
    def digest(**changes):
        return config_lib.digest(small_config(**changes))

    untrained = digest(teacher__control='untrained')
    assert len({digest(), untrained, digest(teacher__control='shuffled')}) == 3
    # Options of its training have no effect.
    assert digest(teacher__control='untrained', teacher__num_steps=99) == untrained
    assert digest(teacher__control='untrained', teacher__seed=5) != untrained


@pytest.mark.usefixtures('movielens_data')
@pytest.mark.parametrize('method', ['dkd', 'dist'])
def test_ratings_have_no_classes_to_compare(method, tmp_path):
    from td_jax.configs import movielens

    config = movielens.get_config()
    config.method = method
    with pytest.raises(
        UserError, match=f'^method {method} compares probabilities of classes, but .* regression'
    ):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# Compares two steps on one device with two steps on two devices: sums of metrics and parameters.
ON_TWO_DEVICES = """
import json, sys
import jax
import numpy as np
from td_jax import config as config_lib
from td_jax.devices import sharding
from td_jax.training import assembly, dispatch

assert len(jax.devices()) == 2
config = config_lib.from_json(json.loads(sys.argv[1]))
source, theirs = (assembly.load_source(config, x) for x in (config.dataset, config.teacher.dataset))
teacher, keys, results = assembly.untrained_teacher(config, theirs), dispatch.seed_keys(config), []
for count in (1, 2):
    mesh = sharding.make_mesh(config, jax.devices()[:count])
    run = assembly.assemble(config, source, teacher, mesh)
    progress, _ = run.run(run.begin(run.init(keys)), run.feed(keys, 0), keys, 0, 2)
    results.append(jax.tree.map(np.asarray, (progress.sums, progress.state.params)))
for one, two in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.long
@pytest.mark.parametrize('unlabelled', ['', 'rest'])
def test_a_teacher_is_shuffled_over_all_devices(comparable_config, unlabelled):
    config = comparable_config(method='fitnet', teacher__control='shuffled', teacher__seed=9)
    config.dataset.unlabelled, config.unlabelled_batch_size = unlabelled, 12
    completed = forked.run(
        ['-c', ON_TWO_DEVICES, config_lib.to_json(config)],
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2', 'JAX_PLATFORMS': 'cpu'},
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
