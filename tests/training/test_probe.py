"""The probe against scikit-learn's logistic regression, and in a run, where no step changes it."""

import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.linear_model

from td_jax import config as config_lib
from td_jax.configs import images as images_config
from td_jax.data import base as data
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.files import metric_log
from td_jax.models import base
from td_jax.training import assembly, dispatch, probe, teachers, train_step
from td_jax.training.run import train


def fit_reference(x, labels):
    """(scikit-learn's logistic regression with its default penalty, the scaled representations)."""
    x = x.astype(np.float64)
    scaled = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).mean())
    return sklearn.linear_model.LogisticRegression(tol=1e-9, max_iter=20_000).fit(scaled, labels), scaled


def compute_probabilities(params, x):
    y = x @ params['kernel'].astype(np.float64) + params['bias']
    y = np.exp(y - y.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)


@pytest.fixture(scope='module')
def digits_representations(small_config, tmp_path_factory):
    """(config, teacher, training (x, labels), test (x, labels)) for images of 5 to 9."""
    config = small_config(method='ld', num_seeds=2, batch_size=50, teacher__num_steps=300)
    config.teacher.model.hidden = (64, 32)
    folder = tmp_path_factory.mktemp('digits')
    run = config_lib.teacher_run(config)
    run.log_every = run.save_every = run.num_steps
    train(run, folder)
    config.teacher.checkpoint = str(folder)
    source = assembly.load_source(config, config.dataset)
    teacher = teachers.load(config, folder, teachers.source_of(config, source), sharding.make_mesh(config))

    def represent(examples):
        upper = base.activations(teacher.model, teacher.params, {'image': examples['image']}).upper
        return np.asarray(upper), examples['labels']

    return config, teacher, represent(source.train.examples), represent(source.evaluation)


@pytest.mark.parametrize('count', [60, 400])
def test_a_probe_is_scikit_learns_logistic_regression(digits_representations, count):
    """With few examples, which are linearly separable, and with many, which are not."""
    _, _, (x, labels), (test_x, test_labels) = digits_representations
    rows = np.random.default_rng(0).permutation(len(x))[:count]
    x, labels = x[rows], labels[rows]
    fitted_probe, (expected, scaled_x) = probe.fit(x, labels, 5), fit_reference(x, labels)
    assert fitted_probe.gradient <= probe.GRADIENT
    np.testing.assert_allclose(
        compute_probabilities(fitted_probe.params, x), expected.predict_proba(scaled_x), atol=1e-3
    )
    assert fitted_probe.accuracy == expected.score(scaled_x, labels)
    scale = np.sqrt(x.var(axis=0, dtype=np.float64).mean())
    scaled_test = (test_x - x.mean(axis=0, dtype=np.float64)) / scale
    score = expected.score(scaled_test, test_labels)
    assert abs(probe.accuracy(fitted_probe.params, test_x, test_labels) - score) <= 1 / len(test_labels)
    # It is better than chance on digits that the teacher has never seen.
    assert score > 0.5


def test_representations_that_say_nothing_give_the_shares_of_the_classes():
    labels = np.array([0, 1, 1, 1])
    fitted_probe = probe.fit(np.full((4, 3), 7.0, np.float32), labels, 2)
    np.testing.assert_allclose(
        compute_probabilities(fitted_probe.params, np.full((1, 3), 7.0)), [[0.25, 0.75]], atol=1e-5
    )
    assert fitted_probe.accuracy == 0.75


def test_the_scale_of_representations_changes_nothing(digits_representations):
    """Real teachers may have states that are small or far from 0."""
    _, _, (x, labels), _ = digits_representations
    plain, other = probe.fit(x[:80], labels[:80], 5), probe.fit(x[:80] * 1e-3 + 5, labels[:80], 5)
    np.testing.assert_allclose(
        compute_probabilities(other.params, x[:80] * 1e-3 + 5),
        compute_probabilities(plain.params, x[:80]),
        atol=5e-3,
    )


def test_a_class_without_examples_is_never_predicted(digits_representations):
    _, _, (x, labels), _ = digits_representations
    fitted_probe = probe.fit(x[:80], labels[:80], 6)
    assert fitted_probe.gradient <= probe.GRADIENT
    assert compute_probabilities(fitted_probe.params, x)[:, 5].max() < 1e-3


# --- In a run --------------------------------------------------------------------------------------


def build(config, teacher):
    source = assembly.load_source(config, config.dataset)
    return source, assembly.assemble(config, source, teacher, sharding.make_mesh(config))


@pytest.mark.parametrize('inputs', ['clean', 'varied'])
def test_each_seed_has_the_probe_of_its_own_examples_and_keeps_it(digits_representations, inputs):
    config, teacher, _, _ = digits_representations
    config = config.copy_and_resolve_references()
    config.teacher.inputs = inputs
    source, run = build(config, teacher)
    keys = dispatch.seed_keys(config)
    state = run.add_probe(run.init(keys))
    before = jax.tree.map(np.asarray, state.probe)
    examples, rows, _ = dispatch.select_examples(source, config)
    for seed in range(2):
        own = data.take(examples, rows[seed])
        x = np.asarray(base.activations(teacher.model, teacher.params, {'image': own['image']}).upper)
        expected, scaled = fit_reference(x, own['labels'])
        params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], before)
        np.testing.assert_allclose(
            compute_probabilities(params, x), expected.predict_proba(scaled), atol=1e-3
        )
    assert not np.allclose(before['kernel'][0], before['kernel'][1])
    assert state.params[train_step.COMMUNICATION] == {}
    progress, _ = run.run(run.begin(state), run.feed(keys, 0), keys, 0, 3)
    assert progress.finite
    for name, leaf in before.items():
        np.testing.assert_array_equal(progress.state.probe[name], leaf)


def test_what_is_compared_is_what_the_probe_says(digits_representations):
    """LD's term in the first step, whose batch has all examples, by hand."""
    config, teacher, _, _ = digits_representations
    source, run = build(config, teacher)
    keys = dispatch.seed_keys(config)
    state = run.add_probe(run.init(keys))
    before = jax.tree.map(np.array, state)
    progress, _ = run.run(run.begin(state), run.feed(keys, 0), keys, 0, 1)
    examples, rows, _ = dispatch.select_examples(source, config)
    student = assembly.build_model(config, config.model, source)
    for seed in range(2):
        inputs = {'image': examples['image'][rows[seed]]}
        params, probe_params = jax.tree.map(
            lambda x, seed=seed: x[seed], (before.params['student'], before.probe)
        )
        predicted = np.asarray(base.activations(student, params, inputs).logits)
        upper = np.asarray(base.activations(teacher.model, teacher.params, inputs).upper)
        target = upper @ probe_params['kernel'] + probe_params['bias']
        expected = np.mean((predicted - target) ** 2)
        np.testing.assert_allclose(progress.sums['logits'][seed], expected, rtol=1e-4)
    assert 'probe' not in progress.sums


def test_seeds_have_the_same_probe_side_by_side_and_alone(digits_representations):
    config, teacher, _, _ = digits_representations
    _, together = build(config, teacher)
    alone_config = config.copy_and_resolve_references()
    alone_config.num_seeds, alone_config.seed = 1, 1
    _, alone = build(alone_config, teacher)
    for name, leaf in together.fit_probe()[1].params.items():
        np.testing.assert_allclose(alone.fit_probe()[0].params[name], leaf, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_a_run_says_what_its_probe_knows_and_goes_on_with_it(
    digits_representations, tmp_path, monkeypatch, capsys
):
    config = digits_representations[0].copy_and_resolve_references()
    config.dataset.split, config.num_steps = 'validation', 2
    config.teacher.checkpoint = str(tmp_path / 'teacher')
    train(config_lib.teacher_run(config), tmp_path / 'teacher')
    result = train(config, tmp_path / 'run')
    err = capsys.readouterr().err
    first = metric_log.read(tmp_path / 'run')[0]
    source = assembly.load_source(config, config.dataset)
    mesh = sharding.make_mesh(config)
    teacher = teachers.load(config, tmp_path / 'teacher', teachers.source_of(config, source), mesh)
    _, run = build(config, teacher)
    fits = run.fit_probe()
    x, labels = run.represent(source.evaluation)
    scores = [probe.accuracy(fit.params, x, labels) for fit in fits]
    np.testing.assert_allclose(result['probe'], scores, atol=1e-9)
    assert first['step'] == 0
    np.testing.assert_allclose(first['probe_train_accuracy'], np.mean([fit.accuracy for fit in fits]))
    np.testing.assert_allclose(first['probe_validation_accuracy'], np.mean(scores))
    assert f'accuracy of the probe: train {first["probe_train_accuracy"]:.4f}, validation ' in err
    # The probe is in the checkpoint: a longer run does not fit it again, and ends as one of that length.
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    config.num_steps = 4
    whole = train(config, tmp_path / 'whole')
    monkeypatch.setattr(probe, 'fit', lambda *arguments: pytest.fail('fitted again'))
    assert train(config, tmp_path / 'again')['values'] == whole['values']


def test_the_test_split_is_read_at_the_end_alone(digits_representations, tmp_path):
    config, *_ = digits_representations
    config = config.copy_and_resolve_references()
    config.num_steps = 2
    result = train(config, tmp_path)
    first, *_ = metric_log.read(tmp_path)
    assert first.keys() == {'step', 'probe_train_accuracy'}
    assert len(json.loads((tmp_path / 'result.json').read_text())['probe']) == len(result['values']) == 2


def test_what_a_probe_reads_is_refused_where_it_is_too_large(digits_representations, tmp_path):
    config, *_ = digits_representations
    config = config.copy_and_resolve_references()
    config.teacher.probe_gb = 4 * 50 * 32 / 1e9
    train(config, tmp_path / 'fits')
    config.teacher.probe_gb = 4 * 49 * 32 / 1e9
    with pytest.raises(
        UserError, match=r'what the teacher makes of 50 training examples .* teacher\.probe_gb'
    ):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# --- Streams ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, dark and light ones."""
    rng = np.random.default_rng(0)
    for name, colour in (('dark', 70), ('light', 150)):
        (tmp_path / 'own' / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(colour, 60, (8, 8, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / 'own' / name / f'{i:02}.png')
    return tmp_path / 'own'


@pytest.mark.parametrize('of_each', [0, 6])
def test_a_stream_gives_the_probe_of_what_is_kept(folder, of_each):
    """With all examples, or each seed's own, in one pass without random variation."""
    probes = []
    for kept_gb in (1.0, 0.0):
        config = images_config.get_config()
        config.method, config.teacher.labels, config.teacher.inputs = 'ld', 'probe', 'varied'
        config.num_seeds, config.batch_size, config.dataset.image_size = 2, 4, 8
        config.dataset.path, config.dataset.kept_gb = str(folder), kept_gb
        config.dataset.examples_per_class = of_each
        for model in (config.model, config.teacher.model):
            model.layers, model.width, model.heads, model.mlp, model.patch, model.split = 1, 8, 2, 8, 4, 0
        teacher = assembly.untrained_teacher(config, assembly.load_source(config, config.teacher.dataset))
        source, run = build(config, teacher)
        assert isinstance(source.train, data.TrainStream) == (kept_gb == 0)
        probes.append([fit.params for fit in run.fit_probe()])
    assert len(probes[0]) == 2
    for in_memory, load_stream in zip(*probes, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), in_memory, load_stream
        )
    is_one = np.array_equal(probes[0][0]['kernel'], probes[0][1]['kernel'])
    assert is_one == (of_each == 0)


def test_a_stream_without_a_pass_is_refused(digits_representations, tmp_path, monkeypatch):
    from td_jax.data import SOURCES

    config = digits_representations[0].copy_and_resolve_references()
    config.teacher.inputs = 'varied'
    load = SOURCES['digits']

    def load_stream(config, task):
        source = load(config, task)
        if isinstance(source.train, dict):
            return source
        example = data.one_example(source)
        return source._replace(train=data.TrainStream(50, example, lambda *arguments: iter([])))

    monkeypatch.setitem(SOURCES, 'digits', load_stream)
    with pytest.raises(
        UserError, match=r'the stream of digits 5, 6, 7, 8, 9 has no pass_over; set teacher\.lab'
    ):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
