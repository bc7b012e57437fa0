"""Gradient shares and spreads against NumPy and hand-written losses; warnings."""

import functools
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import vit_imagenet
from td_jax.data import SOURCES
from td_jax.data import base as data
from td_jax.devices import sharding
from td_jax.files import metric_log
from td_jax.method import objectives
from td_jax.training import assembly, diagnostics, dispatch, train_step
from td_jax.training.run import train
from tests import forked

ROOT = pathlib.Path(__file__).parents[2]


def build(config):
    """(Dispatch, keys, first TrainState, source, Teacher) of a config, the teacher untrained."""
    source, teacher_source = (
        SOURCES[config.dataset.name](config.dataset, task)
        for task in (config.dataset, config.teacher.dataset)
    )
    teacher = assembly.untrained_teacher(config, teacher_source)
    run = assembly.assemble(config, source, teacher, sharding.make_mesh(config))
    keys = dispatch.seed_keys(config)
    return run, keys, run.add_probe(run.init(keys)), source, teacher


# --- Shares ----------------------------------------------------------------------------------------


def mlp(params, x):
    """(s, e, logits) of an MLP of two hidden layers."""
    states = [x]
    for name in ('hidden_layers_0', 'hidden_layers_1'):
        states.append(jax.nn.relu(states[-1] @ params[name]['kernel'] + params[name]['bias'][None]))
    output = params['output_layer']
    return states[1], states[2], states[2] @ output['kernel'] + output['bias'][None]


def decode(params, s, e):
    """Applies FitNet's decoder to states: LayerNorm, Dense, relu and two Dense."""
    x = np.concatenate([s, e], axis=-1)
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    hidden = params['hidden']
    x = x @ np.concatenate([hidden['kernel_0'], hidden['kernel_1']]) + hidden['bias']
    x = np.maximum(x, 0)
    return [x @ params[name]['kernel'] + params[name]['bias'] for name in ('lower', 'upper')]


def fitnet_by_hand(student, learned, theirs, x):
    s, e, _ = mlp(student, x)
    target = np.concatenate(decode(learned['student_decoder'], *theirs[:2]), axis=-1)
    return jnp.square(jnp.concatenate([s, e], axis=-1) - target).mean(axis=-1)


def ld_by_hand(student, learned, theirs, x):
    target = theirs[1] @ learned['kernel'] + learned['bias']
    return jnp.square(mlp(student, x)[2] - target).mean(axis=-1)


@pytest.mark.parametrize(
    ('method', 'term', 'weight', 'by_hand'),
    [('fitnet', 'state', 30.0, fitnet_by_hand), ('ld', 'logits', 0.2, ld_by_hand)],
)
def test_shares_are_those_of_gradients_by_hand(comparable_config, method, term, weight, by_hand):
    config = comparable_config(method=method, num_seeds=2, **{f'{method}__weights__{term}': weight})
    run, keys, state, source, teacher = build(config)
    step, (examples, rows_of_seeds, _) = 3, dispatch.select_examples(source, config)
    progress, order = run.run(run.begin(state), run.feed(keys, 0), keys, 0, step)
    metrics = run.diagnose(progress.state, order, keys)
    for seed in range(2):
        params = jax.tree.map(lambda x, seed=seed: np.asarray(x)[seed], progress.state.params)
        # The examples of the next step, in the order of the epoch.
        rows = rows_of_seeds[seed][np.asarray(order.labelled)[seed, step * 8 : (step + 1) * 8]]
        x, labels = examples['image'][rows], examples['labels'][rows]
        theirs = [np.asarray(state) for state in mlp(teacher.params, x)]

        def compute_task(student, x=x, labels=labels):
            predicted = jax.nn.log_softmax(mlp(student, x)[2])
            return -predicted[np.arange(8), labels].mean()

        learned = params['communication']
        if progress.state.probe is not None:
            learned = jax.tree.map(lambda x, seed=seed: np.asarray(x)[seed], progress.state.probe)

        def compute_other(student, x=x, theirs=theirs, learned=learned):
            return weight * by_hand(student, learned, theirs, x).mean()

        norms = [
            np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(gradient)))
            for gradient in (
                jax.grad(compute_task)(params['student']),
                jax.grad(compute_other)(params['student']),
            )
        ]
        shares = [metrics[f'share_{name}'][seed] for name in ('task', term)]
        np.testing.assert_allclose(shares, norms / np.sum(norms), rtol=1e-3)
        assert 0.05 < shares[1] < 0.95


@pytest.mark.parametrize(
    'method',
    [
        method if method in ('fd', 'ld') else pytest.param(method, marks=pytest.mark.long)
        for method in objectives.METHODS
        if method != 'supervised'
    ],
)
def test_every_term_has_a_share_and_every_state_a_spread(small_config, method):
    changes = {'compute_dtype': 'bfloat16', 'micro_batches': 2, 'td__weights__logits': 0.5}
    run, keys, state, _, _ = build(small_config(method=method, **changes))
    feed = run.feed(keys, 0)
    metrics = jax.eval_shape(lambda state: run.diagnose(state, feed, keys), state)
    signals = {f'{side}_{part}' for side in ('student', 'teacher') for part in ('lower', 'upper')}
    if method in ('td', 'fd', 'hybrid'):
        signals |= {'student_message', 'teacher_message'}
    terms = {'task', *small_config()[method].weights}
    expected = {f'{signal}_{measure}' for signal in signals for measure in ('std', 'rank')}
    if 'states' in objectives.METHODS[method].reads:
        expected |= {f'{signal}_share' for signal in signals if 'message' not in signal}
    assert metrics.keys() == expected | {f'share_{term}' for term in terms}
    assert {(value.shape, value.dtype) for value in metrics.values()} == {((2,), np.dtype('float32'))}


def test_where_no_distance_has_a_weight_there_are_no_messages(small_config):
    config = small_config(method='hybrid', hybrid__weights__feature=0.0)
    run, keys, state, _, _ = build(config)
    feed = run.feed(keys, 0)
    metrics = jax.eval_shape(lambda state: run.diagnose(state, feed, keys), state)
    assert {name for name in metrics if name.startswith('share_')} == {'share_task', 'share_logits'}
    assert not [name for name in metrics if 'message' in name]


def one_seed(config, rows=slice(None)):
    """(Step, TrainState, other arguments of diagnose) for a batch of eight examples, or some of its rows."""
    source = SOURCES['digits'](config.dataset, config.dataset)
    theirs = SOURCES['digits'](config.dataset, config.teacher.dataset)
    teacher = assembly.untrained_teacher(config, theirs)
    step = train_step.make_step(assembly.build_model(config, config.model, source), source.task, 5, config)
    examples = {name: array[:8][rows] for name, array in source.train.examples.items()}
    activations = [jnp.asarray(state) for state in mlp(teacher.params, examples['image'])]
    batch = train_step.Batch(
        source.inputs(source.tables, examples, None),
        jnp.asarray(examples['labels']),
        jnp.ones(len(examples['labels'])),
        assembly.base.Activations(*activations),
    )
    state = step.init(jax.random.key(0), batch)

    def teacher_upper(s):
        return teacher.model.upper(teacher.params, s)

    return step, state, (jax.random.key(1), teacher_upper, batch, train_step.read_hyperparameters(config))


@pytest.mark.parametrize(('method', 'term'), [('td', 'message'), ('fd', 'feature')])
def test_messages_are_what_the_terms_compare(comparable_config, method, term):
    step, state, arguments = one_seed(comparable_config(method=method))
    _, metrics = jax.jit(lambda state: step.update(state, *arguments))(state)
    signals = jax.jit(step.signals)(state.params, arguments[2])
    difference = signals['student_message'] - signals['teacher_message']
    np.testing.assert_allclose(metrics[term], np.mean(np.square(difference)), rtol=1e-5)


@pytest.mark.long
def test_of_several_micro_batches_the_first_is_looked_at(comparable_config):
    metrics = []
    for micro_batches, rows in ((2, slice(None)), (1, slice(None, None, 2))):
        config = comparable_config(method='fd', micro_batches=micro_batches)
        step, state, arguments = one_seed(config, rows)
        diagnose = jax.jit(functools.partial(diagnostics.diagnose, step), static_argnums=2)
        metrics.append(diagnose(state, *arguments))
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        np.testing.assert_allclose(value, metrics[1][name], rtol=1e-5, err_msg=name)


# --- The parts of a state --------------------------------------------------------------------------


def compute_states(run, state, teacher, batches):
    """{side: [(s, e) of each batch]} of the first seed."""
    student = jax.tree.map(lambda x: np.asarray(x)[0], state.params['student'])
    both = {'student': student, 'teacher': teacher.params}
    return {
        side: [[np.asarray(x, np.float64) for x in mlp(params, batch)[:2]] for batch in batches]
        for side, params in both.items()
    }


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_scales_are_the_deviations_of_states_over_the_first_examples(
    small_config, monkeypatch, micro_batches
):
    monkeypatch.setattr(dispatch, 'SCALE_EXAMPLES', 24)
    changes = {'communication__state_scale': 'data', 'micro_batches': micro_batches}
    config = small_config(teacher__inputs='clean', num_seeds=2, **changes)
    run, keys, state, source, teacher = build(config)
    order = run.feed(keys, 0)
    scaled = run.add_scales(state, order, keys)
    examples, rows_of_seeds, _ = dispatch.select_examples(source, config)
    rows = rows_of_seeds[0][np.asarray(order.labelled)[0]]
    # The scales are of three batches, or of the first halves of six.
    batches = [examples['image'][rows[8 * i : 8 * (i + 1) : micro_batches]] for i in range(3 * micro_batches)]
    actual = jax.tree.map(np.asarray, scaled.scales)
    for side, states in compute_states(run, state, teacher, batches).items():
        expected = np.sqrt([np.mean([pair[i].var(axis=0, ddof=1) for pair in states]) for i in (0, 1)])
        np.testing.assert_allclose([actual[side].lower[0], actual[side].upper[0]], expected, rtol=1e-5)
        # Each seed has its own.
        assert actual[side].lower.shape == (2,) and np.ptp(actual[side].lower) > 0


def test_scales_of_a_stream_are_those_of_its_first_batches_which_it_keeps(small_config):
    config = small_config(method='fd', num_seeds=1, communication__state_scale='data')
    source = SOURCES['digits'](config.dataset, config.dataset)
    examples = dispatch.select_examples(source, config).examples
    batches = [data.take(examples, np.arange(8 * i, 8 * (i + 1))) for i in range(3)]
    stream = data.TrainStream(24, data.one_example(source), lambda *_: (batch for batch in batches))
    theirs = SOURCES['digits'](config.dataset, config.teacher.dataset)
    teacher = assembly.untrained_teacher(config, theirs)
    mesh, keys = sharding.make_mesh(config), dispatch.seed_keys(config)
    run = assembly.assemble(config, source._replace(train=stream), teacher, mesh)
    feed, state = run.feed(keys, 0), run.init(keys)
    actual = run.add_scales(state, feed, keys).scales
    first = [batch['image'] for batch in batches[:2]]
    for side, states in compute_states(run, state, teacher, first).items():
        expected = np.sqrt([np.mean([pair[i].var(axis=0, ddof=1) for pair in states]) for i in (0, 1)])
        np.testing.assert_allclose([actual[side].lower[0], actual[side].upper[0]], expected, rtol=1e-5)
    np.testing.assert_array_equal(next(feed)['image'][0], first[0])


def test_the_share_of_a_part_is_that_of_its_variance(small_config):
    for state_scale in ('none', 'data'):
        config = small_config(method='fd', num_seeds=1, communication__state_scale=state_scale)
        run, keys, state, source, teacher = build(config)
        order = run.feed(keys, 0)
        state = run.add_scales(state, order, keys)
        metrics = run.diagnose(state, order, keys)
        examples, rows_of_seeds, _ = dispatch.select_examples(source, config)
        batch = examples['image'][rows_of_seeds[0][np.asarray(order.labelled)[0, :8]]]
        for side, (parts,) in compute_states(run, state, teacher, [batch]).items():
            scales = map(np.asarray, state.scales[side]) if state_scale == 'data' else (1.0, 1.0)
            of_s, of_e = ((x / scale).var(axis=0).sum() for x, scale in zip(parts, scales, strict=True))
            shares = [metrics[f'{side}_{part}_share'] for part in ('lower', 'upper')]
            np.testing.assert_allclose(shares, np.array([[of_s], [of_e]]) / (of_s + of_e), rtol=1e-5)


def test_a_part_that_does_not_vary_keeps_its_size():
    batches = [make_examples(5, 7, scale=0.06, mean=2.0), np.full((5, 7), 3.0, np.float32)]
    for x, expected in zip(batches, (np.sqrt(batches[0].var(axis=0, ddof=1).mean()), 1.0), strict=True):
        moments = diagnostics.measure_moments(x)
        tree = {side: {'lower': moments, 'upper': moments} for side in ('student', 'teacher')}
        scales = diagnostics.compute_scales([tree])
        np.testing.assert_allclose(scales['teacher'].lower, expected, rtol=1e-5)


def test_a_run_with_scales_continues_with_the_same_ones(small_config, tmp_path, outcome):
    changes = {'method': 'fitnet', 'num_seeds': 1, 'teacher__control': 'untrained'}
    for name, stops in (('once', (4,)), ('twice', (2, 4))):
        for num_steps in stops:
            config = small_config(num_steps=num_steps, communication__state_scale='data', **changes)
            train(config, tmp_path / name)
    once, twice = (outcome(tmp_path / name)['arrays'] for name in ('once', 'twice'))
    assert once == twice and 'scales/teacher/lower' in once


# --- Standard deviation and effective rank ---------------------------------------------------------


def measure_spread_by_svd(x):
    """(std, effective rank) in float64, from the singular values."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)
    std = np.sqrt(x.reshape(len(x), -1).var(axis=0).mean())
    eigenvalues = np.linalg.svd(x.reshape(-1, x.shape[-1]), compute_uv=False) ** 2
    return std, eigenvalues.sum() ** 2 / np.sum(eigenvalues**2)


def make_examples(*shape, scale=1.0, mean=0.0):
    return scale * np.random.default_rng(0).normal(size=shape).astype(np.float32) + np.float32(mean)


LOW_RANK = make_examples(31, 2) @ np.array([[1, 0, 2, 0, 1, 3, 0], [0, 1, 0, 1, 1, 0, 5]], np.float32)


@pytest.mark.parametrize(
    'x',
    [
        make_examples(31, 7),
        make_examples(5, 13),  # the smaller Gram matrix is that of the examples
        make_examples(11, 3, 17),
        LOW_RANK,
        LOW_RANK[:, :1] * np.array([[1, 0, -2]], np.float32),
        make_examples(31, 7, scale=1e-25),
        make_examples(31, 7, mean=100.0),
        make_examples(31, 7) * np.float32(0.2) ** np.arange(7, dtype=np.float32),
    ],
)
def test_spread_is_that_of_the_singular_values(x):
    np.testing.assert_allclose(diagnostics.measure_spread(x), measure_spread_by_svd(x), rtol=1e-4)


def test_spread_of_directions_by_hand():
    """The effective rank is the number of directions of equal length; a common offset does not count."""
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], np.float32)
    np.testing.assert_allclose(diagnostics.measure_spread(corners), [np.sqrt(1 / 3), 2], rtol=1e-6)
    np.testing.assert_allclose(diagnostics.measure_spread(np.full((5, 3), 7.0)), [0, 0])
    by_token = np.broadcast_to(make_examples(1, 4, 3), (6, 4, 3))
    np.testing.assert_allclose(diagnostics.measure_spread(by_token), [0, 0])
    # Examples that differ by rounding alone have rank 0.
    np.testing.assert_allclose(diagnostics.measure_spread(corners * 1e-6 + 100), [0, 0])


def test_spread_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(make_examples(31, 7), jnp.bfloat16)
    std, rank = diagnostics.measure_spread(x)
    assert std.dtype == rank.dtype == jnp.float32
    np.testing.assert_allclose([std, rank], measure_spread_by_svd(x.astype(jnp.float32)), rtol=1e-4)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_is_not_called_collapsed(bad):
    x = jnp.asarray(make_examples(11, 3)).at[2, 1].set(bad)
    assert np.isnan(diagnostics.measure_spread(x)).all()


# --- Warnings --------------------------------------------------------------------------------------


def read_warnings(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]


def test_an_inert_term_is_warned_of_once(small_config, tmp_path, capsys):
    config = small_config(method='fitnet', diagnostics=True, fitnet__weights__state=1e-6, num_seeds=1)
    train(config, tmp_path / 'run')
    (line,) = read_warnings(capsys)
    assert line.startswith('fitnet digits 5, 6, 7, 8, 9: step 2/6  warning: the term state is inert: ')
    assert line.endswith('% of the gradient on the student; raise fitnet.weights.state')
    config.teacher.checkpoint = str(tmp_path / 'run' / 'teacher')
    config.fitnet.weights.state = 1.0
    train(config, tmp_path / 'other')
    assert read_warnings(capsys) == []
    shares = [
        [line['share_state'] for line in metric_log.read(tmp_path / name) if 'share_state' in line]
        for name in ('run', 'other')
    ]
    assert [len(shares_of_run) for shares_of_run in shares] == [4, 4]
    assert max(shares[0]) < 1e-4
    assert min(shares[1]) > diagnostics.INERT


def test_a_task_that_terms_drown_is_warned_of(small_config, capsys):
    watch = diagnostics.ProgressMonitor(small_config(method='ld'), 'digits', [])
    watch.check(2, {'share_task': 0.009, 'share_logits': 0.991})
    (line,) = read_warnings(capsys)
    assert 'the term task is inert: 0.9% of the gradient on the student; lower ld.weights' in line


TWO = {f'{part}__classes': (3, 8) for part in ('dataset', 'teacher__dataset')}


@pytest.mark.parametrize(
    ('method', 'term'), [('dkd', 'others'), pytest.param('dist', 'inter', marks=pytest.mark.long)]
)
def test_a_term_that_is_constant_by_definition_gets_no_advice_to_raise_its_weight(
    small_config, tmp_path, capsys, method, term
):
    config = small_config(method=method, diagnostics=True, num_seeds=1, **TWO)
    train(config, tmp_path)
    err = capsys.readouterr().err
    line = f'{method}.weights.{term} has no effect: with two classes its term is constant\n'
    assert err.count(line) == 1
    assert f'the term {term}' not in err
    # The term is 0, or 0 or 2 T^2 per example, so its gradient is negligible.
    shares = [record[f'share_{term}'] for record in metric_log.read(tmp_path) if f'share_{term}' in record]
    assert len(shares) == 4 and max(shares) < 1e-4


def test_terms_of_three_classes_are_none_of_those(small_config):
    for method in ('dkd', 'dist'):
        assert objectives.constant_terms(small_config(method=method), 3) == []
    assert objectives.constant_terms(small_config(method='dkd'), 2) == ['others']
    assert objectives.constant_terms(small_config(method='dkd', dkd__weights__others=0.0), 2) == []


def test_while_weights_warm_up_no_term_is_called_inert(small_config, capsys):
    watch = diagnostics.ProgressMonitor(small_config(td__warmup_steps=4), 'digits', [])
    watch.check(2, {'share_state': 0.001})
    assert read_warnings(capsys) == []
    watch.check(4, {'share_state': 0.001})
    assert len(read_warnings(capsys)) == 1


@pytest.mark.parametrize(
    'known_records', [[], [{'step': 0, 'student_message_std': 0.5, 'teacher_message_std': 0.3}]]
)
def test_collapsed_messages_are_warned_of_once_a_side(small_config, capsys, known_records):
    """Relative to the first line, which may be that of a run that is continued."""
    monitor = diagnostics.ProgressMonitor(small_config(method='fd'), 'digits', known_records)
    for step, student, teacher in ((0, 0.5, 0.3), (2, 0.051, 0.031), (4, 0.049, 0.031), (6, 0.01, 0.02)):
        if step or not known_records:
            monitor.check(step, {'student_message_std': student, 'teacher_message_std': teacher})
        lines = read_warnings(capsys)
        if step < 4:
            assert lines == []
        else:
            (line,) = lines
            side, first, now = ('student', 0.5, 0.049) if step == 4 else ('teacher', 0.3, 0.02)
            assert f"step {step}/6  warning: the {side}'s messages have collapsed" in line
            assert f'was {first} at first and is {now};' in line
            assert line.endswith('lower its weight in fd.weights')


@pytest.mark.long
def test_encoders_that_are_drawn_together_alone_collapse(small_config, tmp_path, capsys):
    config = small_config(
        method='fd',
        diagnostics=True,
        fd__weights__feature=1e4,
        optimizer__learning_rate=0.03,
        communication__message=8,
        num_steps=60,
        log_every=20,
        save_every=60,
        num_seeds=1,
    )
    train(config, tmp_path)
    text = '\n'.join(read_warnings(capsys))
    assert text.count('messages have collapsed') == 2
    lines = [line for line in metric_log.read(tmp_path) if 'student_message_std' in line]
    assert [line['step'] for line in lines] == [0, 20, 40, 60]
    assert lines[-1]['student_message_std'] < 0.1 * lines[0]['student_message_std']


def test_while_a_ramp_up_rests_a_part_no_term_is_called_inert(small_config, capsys):
    config = small_config(td__ramp_up=(2, 2), td__rounds=0, num_seeds=1)
    run, keys, state, source, _ = build(config)
    feed, monitor = run.feed(keys, 0), diagnostics.ProgressMonitor(config, source.name, [])
    metrics = []
    for step in range(6):
        state = state._replace(step=jnp.full(1, step, jnp.int32))
        metrics.append({name: float(value[0]) for name, value in run.diagnose(state, feed, keys).items()})
        shares = [metrics[-1][f'share_{term}'] for term in ('task', 'message', 'state')]
        # A number divided by itself is 1 up to rounding.
        assert (shares == [pytest.approx(1.0, abs=1e-6), 0.0, 0.0]) == (step < 2)
        monitor.check(step, {**metrics[-1], 'share_state': 0.0})
        assert len(read_warnings(capsys)) == (step == 4)


# --- A run -----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def td_config(td_config):
    """The run of other tests, with diagnostics."""
    return copy_with(td_config, diagnostics=True)


def copy_with(config, **changes):
    other = config.copy_and_resolve_references()
    other.update(changes)
    return other


@pytest.mark.long
def test_a_run_ends_bit_for_bit_as_without_diagnostics(finished, td_config, tmp_path, outcome):
    shutil.copytree(finished / 'teacher', tmp_path / 'run' / 'teacher')
    train(copy_with(td_config, diagnostics=False), tmp_path / 'run')
    with_diagnostics, without_diagnostics = outcome(finished), outcome(tmp_path / 'run')
    assert (
        with_diagnostics.pop('config')['diagnostics'],
        without_diagnostics.pop('config')['diagnostics'],
    ) == (True, False)
    first, *lines = with_diagnostics.pop('metrics')
    assert first['step'] == 0
    assert all(name.startswith(('step', 'share_', 'student_', 'teacher_')) for name in first)
    plain = without_diagnostics.pop('metrics')
    assert [{name: line[name] for name in other} for line, other in zip(lines, plain, strict=True)] == plain
    assert all(
        line.keys() - other.keys() == first.keys() - {'step'}
        for line, other in zip(lines[:-1], plain[:-1], strict=True)
    )
    for line in (first, *lines[:-1]):
        assert sum(value for name, value in line.items() if name.startswith('share_')) == pytest.approx(1)
    assert with_diagnostics == without_diagnostics
    # The teacher's run has one term.
    assert not [name for line in metric_log.read(finished / 'teacher') for name in line if 'share' in name]


@pytest.mark.parametrize('damaged', [[6], pytest.param([4, 6], marks=pytest.mark.long)])
def test_a_run_that_is_continued_writes_the_same_lines(
    damaged, finished, td_config, tmp_path, outcome, capsys
):
    """Continued from a step in the middle, and from the beginning."""
    folder = shutil.copytree(finished, tmp_path / 'run')
    (folder / 'result.json').unlink()
    for step in damaged:
        shutil.rmtree(folder / 'checkpoints' / str(step) / 'state')
    train(td_config, folder)
    assert ('continues at step 4 of 6' in capsys.readouterr().err) == (damaged == [6])
    assert outcome(folder) == outcome(finished)


@pytest.mark.long
def test_diagnostics_can_be_switched_on_and_off_on_the_way(finished, td_config, tmp_path, outcome):
    shutil.copytree(finished / 'teacher', tmp_path / 'run' / 'teacher')
    for steps, is_on in ((2, False), (4, True), (6, False)):
        train(copy_with(td_config, num_steps=steps, diagnostics=is_on), tmp_path / 'run')
    assert outcome(tmp_path / 'run')['arrays'] == outcome(finished)['arrays']
    lines = [line for line in metric_log.read(tmp_path / 'run') if 'train_loss' in line]
    assert ['share_task' in line for line in lines] == [False, True, False]


# --- Several devices -------------------------------------------------------------------------------

PROGRAM = """
import json, sys
import jax
import numpy as np
from td_jax import config as config_lib
from td_jax.data import SOURCES
from td_jax.devices import sharding
from td_jax.training import assembly, dispatch

config = config_lib.from_json(json.loads(sys.argv[1]))
source, theirs = (
    SOURCES['digits'](config.dataset, task) for task in (config.dataset, config.teacher.dataset)
)
teacher = assembly.untrained_teacher(config, theirs)
for method in sys.argv[2:]:
    config.method, metrics = method, []
    for devices, fsdp in ((1, 1), (4, 2)):
        config.mesh.fsdp = fsdp
        mesh = sharding.make_mesh(config, jax.devices()[:devices])
        run = assembly.assemble(config, source, teacher, mesh)
        keys = dispatch.seed_keys(config)
        values = run.diagnose(run.init(keys), run.feed(keys, 0), keys)
        assert all(value.sharding.is_fully_replicated for value in values.values())
        metrics.append(jax.tree.map(np.asarray, values))
    for name, value in metrics[0].items():
        np.testing.assert_allclose(metrics[1][name], value, rtol=1e-3, atol=1e-5, err_msg=f'{method} {name}')
"""


@pytest.mark.long
@pytest.mark.parametrize('methods', [['fd'], ['td', 'rkd']])
def test_several_devices_find_what_one_finds(comparable_config, methods):
    config = comparable_config(
        batch_size=16, micro_batches=2, td__rounds=2, td__scale='variance', fd__weights__feature=30.0
    )
    completed = forked.run(
        ['-c', PROGRAM, json.dumps(config.to_dict()), *methods],
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu'},
    )
    assert completed.returncode == 0, completed.stderr[-2000:]


# --- A stream --------------------------------------------------------------------------------------


def test_what_was_looked_at_is_still_there():
    feed = dispatch._Feed(number for number in range(3))
    assert [next(feed), feed.peek(), feed.peek(), next(feed), next(feed)] == [0, 1, 1, 1, 2]
    feed = dispatch._Feed(number for number in range(3))
    assert [feed.peek(1), feed.peek(), next(feed), next(feed), next(feed)] == [1, 0, 0, 1, 2]
    feed = dispatch._Feed(number for number in range(3))
    feed.peek()
    feed.close()
    assert next(feed) == 0
    with pytest.raises(StopIteration):
        next(feed)


@pytest.mark.long
def test_a_stream_loses_no_example_to_diagnostics(imagenet_data, tmp_path, outcome):
    """With, without, and after an interruption, a run ends the same; the states of a ViT are of tokens."""
    config = vit_imagenet.get_config()
    changes = {
        'method': 'td',
        'num_steps': 4,
        'batch_size': 8,
        'eval_batch_size': 32,
        'log_every': 2,
        'save_every': 2,
        'compute_dtype': 'float32',
        'dataset.image_size': 32,
        'dataset.shuffle_buffer': 64,
        'optimizer.warmup_steps': 1,
        'communication.hidden': 16,
        'communication.message': 8,
        'teacher.pretrained': str(ROOT / 'tests' / 'golden' / 'vit_tiny_prelogits.npz'),
        'model.layers': 1,
        'model.split': 1,
        'teacher.model.layers': 6,
    }
    for model in ('model', 'teacher.model'):
        changes |= {
            f'{model}.{key}': n for key, n in {'patch': 8, 'width': 48, 'mlp': 96, 'heads': 4}.items()
        }
    config.update_from_flattened_dict(changes)
    train(copy_with(config, num_steps=2), tmp_path / 'cut')
    train(config, tmp_path / 'cut')
    train(copy_with(config, diagnostics=False), tmp_path / 'without')
    train(config, tmp_path / 'with')
    cut, whole, without = (outcome(tmp_path / name) for name in ('cut', 'with', 'without'))
    assert whole['arrays'] == without['arrays'] == cut['arrays']
    lines = [[line for line in run['metrics'] if 'share_task' in line] for run in (cut, whole)]
    assert lines[0] == lines[1]
    assert [line['step'] for line in lines[0]] == [0, 2, 4]
    assert all(np.isfinite(list(line.values())).all() for line in lines[0])
    assert 1 <= lines[0][-1]['teacher_message_rank'] <= 8
