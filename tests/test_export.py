"""The student alone, as others read it: what is written is what is read back."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
import safetensors.numpy

from td_jax import export, pretrained
from td_jax.data import SOURCES, cifar
from td_jax.data import base as data
from td_jax.errors import UserError
from td_jax.models import base
from td_jax.training import assembly, train_step
from td_jax.training import finished as finished_runs
from td_jax.training.run import train

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
NAMES = ('plane', 'car', 'bird')


def run_command(*arguments):
    """(exit code, stdout, stderr) of the command."""
    done = subprocess.run(
        [sys.executable, '-m', 'td_jax.export', *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def mlp_run(small_config, tmp_path_factory):
    """The workdir of a finished TD run between MLPs."""
    folder = tmp_path_factory.mktemp('mlp')
    train(small_config(num_steps=2, teacher__num_steps=1), folder)
    return folder


@pytest.fixture
def images(monkeypatch):
    """Takes the place of CIFAR: 11 images of each of three classes in both parts."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 11)
    pixels = rng.integers(0, 256, (33, 32, 32, 3), np.uint8)
    parts = {'train': pixels, 'test': pixels[::-1]}, {'train': labels, 'test': labels[::-1]}
    monkeypatch.setattr(cifar, 'read', lambda name: (*parts, NAMES))


@pytest.fixture
def vit_config(small_config):
    """A function (**changes of config.model) -> the config of a small supervised ViT."""

    def make(**changes):
        model = {'name': 'vit', 'width': 10, 'layers': 2, 'mlp': 7, 'heads': 2, 'patch': 16, **changes}
        return small_config(
            method='supervised',
            num_steps=1,
            dataset__name='cifar10',
            dataset__classes=(2, 0),
            dataset__examples_per_class=0,
            teacher__dataset__classes=(),
            **{f'model__{key}': value for key, value in model.items()},
        )

    return make


@pytest.fixture
def finished_vit(vit_config, images):
    """A function (compute_dtype, **changes of config.model) -> a run whose student has random numbers."""

    def make(compute_dtype='float32', **changes):
        config = vit_config(**changes)
        config.compute_dtype = compute_dtype
        source = SOURCES['cifar10'](config.dataset, config.dataset)
        model = assembly.build_model(config, config.model, source)
        inputs = source.inputs(source.tables, data.one_example(source), None)
        rng = np.random.default_rng(3)
        params = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
            jax.eval_shape(model.init, jax.random.key(0), inputs),
        )
        return finished_runs.Finished(config, source, model, {train_step.STUDENT: params})

    return make


def logits_of(finished, images):
    model, params = finished.student, finished.params[train_step.STUDENT]
    return np.asarray(base.activations(model, params, {'image': images}).logits)


def logits_back(location, images):
    """What the model computes that the importer makes of a file."""
    checkpoint = pretrained.read(str(location))
    module = pretrained.module_of(checkpoint.architecture, split=1)
    return np.asarray(base.activations(base.from_module(module), checkpoint.params, {'image': images}).logits)


@pytest.fixture
def shown():
    """Five images as a model is shown them."""
    return np.random.default_rng(1).uniform(-1, 1, (5, 32, 32, 3)).astype(np.float32)


def test_npz_has_the_names_shapes_and_values_of_the_original(tmp_path):
    for name in ('vit_tiny.npz', 'vit_tiny_prelogits.npz'):
        checkpoint = pretrained.read(str(GOLDEN / name))
        export.write_npz(tmp_path / name, checkpoint.architecture, checkpoint.params)
        with np.load(GOLDEN / name) as theirs, np.load(tmp_path / name) as ours:
            assert sorted(ours) == sorted(theirs)
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key, strict=True)


def test_safetensors_has_the_names_shapes_and_values_of_the_original(tmp_path):
    source = GOLDEN / 'hf_vit_tiny_classifier'
    checkpoint = pretrained.read(str(source))
    names = [f'LABEL_{i}' for i in range(7)]
    export.write_hugging_face(tmp_path / 'made', checkpoint.architecture, checkpoint.params, names)
    theirs = safetensors.numpy.load_file(source / 'model.safetensors')
    ours = safetensors.numpy.load_file(tmp_path / 'made' / 'model.safetensors')
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key, strict=True)
    theirs, ours = (
        json.loads((folder / 'config.json').read_text()) for folder in (source, tmp_path / 'made')
    )
    added = {'num_labels': 7}
    assert {key: value for key, value in ours.items() if key not in theirs} == added
    assert {key: value for key, value in theirs.items() if key in ours} == {
        key: value for key, value in ours.items() if key not in added
    }


@pytest.mark.parametrize('pre_logits', [False, True])
def test_npz_comes_back_with_identical_logits(finished_vit, shown, tmp_path, pre_logits):
    finished = finished_vit(pre_logits=pre_logits)
    export.FORMATS['npz'].write(tmp_path / 'made.npz', finished)
    np.testing.assert_array_equal(logits_back(tmp_path / 'made.npz', shown), logits_of(finished, shown))


@pytest.mark.parametrize(
    ('activation', 'theirs', 'epsilon'), [('gelu', 'gelu', 1e-3), ('gelu_tanh', 'gelu_pytorch_tanh', 1e-6)]
)
def test_safetensors_comes_back_with_identical_logits(
    finished_vit, shown, tmp_path, activation, theirs, epsilon
):
    finished, made = finished_vit(activation=activation, epsilon=epsilon), tmp_path / 'made'
    export.FORMATS['safetensors'].write(made, finished)
    np.testing.assert_array_equal(logits_back(made, shown), logits_of(finished, shown))
    config = json.loads((made / 'config.json').read_text())
    assert (config['hidden_act'], config['layer_norm_eps']) == (theirs, epsilon)
    assert config['id2label'] == {'0': 'bird', '1': 'plane'}
    assert config['label2id'] == {'bird': 0, 'plane': 1}
    with safetensors.safe_open(made / 'model.safetensors', 'numpy') as file:
        assert file.metadata() == {'format': 'pt'}


def test_the_folder_says_how_images_are_shown(finished_vit, tmp_path):
    """A pixel on its way through the two steps that the folder names is what we make of it."""
    finished = finished_vit()
    export.FORMATS['safetensors'].write(tmp_path / 'made', finished)
    how = json.loads((tmp_path / 'made' / 'preprocessor_config.json').read_text())
    pixels = np.arange(0, 256, 51)
    theirs = (pixels * how['rescale_factor'] - how['image_mean'][0]) / how['image_std'][0]
    examples = {'image': np.broadcast_to(pixels.astype(np.uint8)[:, None, None, None], (6, 32, 32, 3))}
    ours = finished.source.inputs((), examples, None)['image']
    np.testing.assert_allclose(ours[:, 0, 0, 0], theirs, atol=1e-6)
    assert how['size'] == {'height': 32, 'width': 32}


def test_a_trained_vit_goes_out_and_comes_back(vit_config, images, shown, tmp_path):
    """The whole way, of the second seed, which is not the first."""
    train(vit_config(), tmp_path / 'run')
    first, second = (finished_runs.load(tmp_path / 'run', i) for i in range(2))
    text = export.export(tmp_path / 'run', 'safetensors', seed_index=1)
    made, *_, student, where = text.splitlines()
    assert made == str(tmp_path / 'run' / 'student_safetensors')
    assert sorted(path.name for path in pathlib.Path(made).iterdir()) == [
        'config.json',
        'model.safetensors',
        'preprocessor_config.json',
    ]
    found = logits_back(made, shown)
    np.testing.assert_array_equal(found, logits_of(second, shown))
    assert (found != logits_of(first, shown)).any()
    # A supervised run has no teacher to show beside it.
    assert student.startswith('student  ')
    assert where.startswith('(on ')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_stablehlo_takes_any_number_of_images(finished_vit, shown, tmp_path, dtype):
    finished = finished_vit(dtype)
    export.FORMATS['stablehlo'].write(tmp_path / 'made', finished)
    program = jax.export.deserialize(bytearray((tmp_path / 'made').read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    expected = logits_of(finished, shown)
    for count in (1, 5):
        logits = program.call(shown[:count])
        tolerance = {'float32': 1e-5, 'bfloat16': 5e-2}[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected[:count], atol=tolerance, strict=True)


def test_stablehlo_of_an_mlp_holds_its_parameters(mlp_run, tmp_path):
    path = tmp_path / 'mlp.stablehlo'
    export.export(mlp_run, 'stablehlo', path)
    # Another process, which has the file and nothing else.
    code = (
        'import jax.export, json, numpy as np, sys\n'
        'program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))\n'
        'print(json.dumps([program.call(np.full((n, 64), 0.5, np.float32)).tolist() for n in (2, 3)]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, path], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    two, three = json.loads(done.stdout)
    expected = logits_of(finished_runs.load(mlp_run), np.full((3, 64), 0.5, np.float32))
    np.testing.assert_allclose(three, expected, atol=1e-6)
    np.testing.assert_allclose(two, expected[:2], atol=1e-6)


def test_several_inputs_enter_by_name(mlp_run):
    """As those of a recommender do."""
    finished = finished_runs.load(mlp_run)

    def inputs(tables, examples, key):
        return {'half': examples['image'][:, :32], 'rest': examples['image'][:, 32:]}

    def joined(params, inputs, key=None):
        image = jax.numpy.concatenate([inputs['half'], inputs['rest']], axis=1)
        return finished.student.lower(params, {'image': image}, key)

    params = finished.params[train_step.STUDENT]
    written = export.stablehlo(
        finished.student._replace(lower=joined), params, finished.source._replace(inputs=inputs)
    )
    image = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 64)
    found = jax.export.deserialize(bytearray(written)).call(inputs(None, {'image': image}, None))
    np.testing.assert_allclose(found, logits_of(finished, image), atol=1e-6)


def test_the_command_says_size_and_speed_beside_the_teachers(mlp_run, tmp_path):
    """Counts worked by hand: 64 pixels; student 5 and 3 wide, teacher 7 and 11; 5 labels each."""
    path = tmp_path / 'student.bin'
    code, out, err = run_command(f'--workdir={mlp_run}', '--format=stablehlo', f'--output={path}')
    assert (code, err) == (0, '')
    first, empty, header, student, teacher, where = out.splitlines()
    assert (first, empty) == (str(path), '')
    assert header.split('  ')[-2:] == ['ms an image, 1 at once', 'ms an image, 32 at once']
    assert student.split()[:2] == ['student', str(64 * 5 + 5 + 5 * 3 + 3 + 3 * 5 + 5)]
    assert teacher.split()[:2] == ['teacher', str(64 * 7 + 7 + 7 * 11 + 11 + 11 * 5 + 5)]
    assert all(float(ms) > 0 for line in (student, teacher) for ms in line.split()[2:])
    assert where.startswith('(on ')


def test_fewer_examples_than_are_timed_are_repeated(mlp_run):
    source = finished_runs.load(mlp_run).source
    few = source._replace(evaluation={'labels': np.arange(3)})
    np.testing.assert_array_equal(export.examples_of(few, 7)['labels'], [0, 1, 2, 0, 1, 2, 0])


@pytest.mark.parametrize(
    ('changes', 'name', 'text'),
    [
        ({'activation': 'gelu'}, 'npz', 'model.activation gelu_tanh, and that of this student is gelu; use '),
        ({'epsilon': 1e-3}, 'npz', 'use --format=safetensors or --format=stablehlo.'),
        ({'pre_logits': True}, 'safetensors', 'use --format=npz or --format=stablehlo.'),
        ({'pre_logits': True, 'epsilon': 1e-3}, 'npz', 'use --format=stablehlo.'),
    ],
)
def test_a_format_that_would_change_the_model_is_refused(small_config, changes, name, text):
    config = small_config(model__name='vit', **{f'model__{key}': value for key, value in changes.items()})
    with pytest.raises(UserError) as error:
        export.check_format(name, config)
    assert text in str(error.value)


@pytest.mark.parametrize('name', ['npz', 'safetensors'])
def test_an_mlp_is_refused_where_a_vit_is_meant(mlp_run, name):
    before = sorted(mlp_run.rglob('*'))
    with pytest.raises(UserError, match=r'of model.name mlp; use --format=stablehlo\.$'):
        export.export(mlp_run, name)
    assert sorted(mlp_run.rglob('*')) == before


def test_what_is_there_already_stays(mlp_run, tmp_path):
    for path in (tmp_path / 'file', tmp_path / 'folder'):
        path.mkdir() if path.name == 'folder' else path.write_text('mine')
        with pytest.raises(UserError, match='is there already; delete it or choose another --output'):
            export.export(mlp_run, 'stablehlo', path)
    assert (tmp_path / 'file').read_text() == 'mine'
    assert list((tmp_path / 'folder').iterdir()) == []


def test_what_breaks_leaves_nothing_behind(mlp_run, tmp_path, monkeypatch):
    def full(path, finished):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setitem(export.FORMATS, 'stablehlo', export.FORMATS['stablehlo']._replace(write=full))
    with pytest.raises(UserError, match=r'file cannot be written: No space left on device\.'):
        export.export(mlp_run, 'stablehlo', tmp_path / 'file')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--workdir=RUN'], '--format is missing'),
        (['--workdir=RUN', '--format=onnx'], 'npz|safetensors|stablehlo'),
        (['--workdir=RUN', '--format=stablehlo', '--seed_index=2'], 'has 2 seeds'),
        (['--workdir=RUN', '--format=stablehlo', '--output=RUN/no/file'], 'its folder is missing'),
        (['--workdir=RUN/no', '--format=stablehlo'], 'is not the workdir of a finished run'),
    ],
)
def test_a_mistake_is_one_line(mlp_run, arguments, text):
    before = sorted(mlp_run.rglob('*'))
    code, out, err = run_command(*(argument.replace('RUN', str(mlp_run)) for argument in arguments))
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('td_jax: ')
    assert text in err
    assert sorted(mlp_run.rglob('*')) == before
