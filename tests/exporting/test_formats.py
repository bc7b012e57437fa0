"""Exported weights of a student: they are read back with identical logits."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.exporting import formats
from td_jax.models import base
from td_jax.pretrained.architecture import Preprocessing, build_module
from td_jax.training import finished as finished_runs
from td_jax.training.run import train


def import_and_compute(location, images):
    """The logits of the model that is imported from a file."""
    checkpoint = pretrained.read(str(location))
    module = build_module(checkpoint.architecture, split=1)
    return np.asarray(base.activations(base.from_module(module), checkpoint.params, {'image': images}).logits)


@pytest.mark.parametrize('pre_logits', [False, True])
def test_npz_comes_back_with_identical_logits(finished_vit, model_images, tmp_path, pre_logits, logits_of):
    finished = finished_vit(pre_logits=pre_logits)
    formats.FORMATS['npz'].write(tmp_path / 'made.npz', finished)
    np.testing.assert_array_equal(
        import_and_compute(tmp_path / 'made.npz', model_images), logits_of(finished, model_images)
    )


@pytest.mark.parametrize(
    ('activation', 'theirs', 'epsilon'), [('gelu', 'gelu', 1e-3), ('gelu_tanh', 'gelu_pytorch_tanh', 1e-6)]
)
def test_safetensors_comes_back_with_identical_logits(
    finished_vit, model_images, tmp_path, activation, theirs, epsilon, logits_of
):
    finished, location = finished_vit(activation=activation, epsilon=epsilon), tmp_path / 'made'
    formats.FORMATS['safetensors'].write(location, finished)
    np.testing.assert_array_equal(
        import_and_compute(location, model_images), logits_of(finished, model_images)
    )
    config = json.loads((location / 'config.json').read_text())
    assert (config['hidden_act'], config['layer_norm_eps']) == (theirs, epsilon)
    assert config['id2label'] == {'0': 'bird', '1': 'plane'}
    assert config['label2id'] == {'bird': 0, 'plane': 1}
    with safetensors.safe_open(location / 'model.safetensors', 'numpy') as file:
        assert file.metadata() == {'format': 'pt'}


def test_registers_come_back_with_identical_logits(finished_vit, model_images, tmp_path, logits_of):
    finished = finished_vit(registers=1, pooling='class_and_register')
    formats.FORMATS['safetensors'].write(tmp_path / 'made', finished)
    np.testing.assert_array_equal(
        import_and_compute(tmp_path / 'made', model_images), logits_of(finished, model_images)
    )


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZATION = {'image_mean': MEAN, 'image_std': STD}


@pytest.mark.parametrize('dataset', [{}, NORMALIZATION])
def test_the_folder_says_how_images_are_shown(finished_vit, tmp_path, dataset):
    """The two steps that the folder names turn pixels into the same inputs as ours."""
    finished = finished_vit(dataset=dataset)
    formats.FORMATS['safetensors'].write(tmp_path / 'made', finished)
    how = json.loads((tmp_path / 'made' / 'preprocessor_config.json').read_text())
    pixels = np.random.default_rng(5).integers(0, 256, (6, 32, 32, 3), np.uint8)
    theirs = (pixels * how['rescale_factor'] - how['image_mean']) / how['image_std']
    ours = finished.source.inputs((), {'image': pixels}, None)['image']
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert how['size'] == {'height': 32, 'width': 32}


@pytest.mark.parametrize('resize', ['bilinear', 'bilinear_antialias'])
def test_the_folder_promises_no_resize_that_the_student_does_not_know(finished_vit, tmp_path, resize):
    """Hugging Face resizes with PIL: if the folder asks for it, the result is the same as ours."""
    finished = finished_vit(dataset={'resize': resize})
    formats.FORMATS['safetensors'].write(tmp_path / 'made', finished)
    written_config = json.loads((tmp_path / 'made' / 'preprocessor_config.json').read_text())
    image = np.random.default_rng(5).integers(0, 256, (101, 77, 3), np.uint8)
    theirs = PIL.Image.fromarray(image).resize((32, 32), PIL.Image.Resampling(written_config['resample']))
    ours = finished.source.inputs((), {'image': image[None]}, None)['image'][0]
    difference = np.abs((np.asarray(ours) + 1) * 127.5 - np.asarray(theirs, np.float32))
    assert written_config['do_resize'] == (resize == 'bilinear_antialias') == bool(difference.max() <= 1.01)
    # The importer follows the folder.
    imported = pretrained.read(str(tmp_path / 'made')).preprocessing
    resizing = (resize, 'squash', 1.0, 32) if written_config['do_resize'] else (None,)
    assert imported == Preprocessing((0.5,) * 3, (0.5,) * 3, *resizing)
    note = formats.FORMATS['safetensors'].note(finished.config)
    assert (note is None) == written_config['do_resize']
    assert note is None or 'leaves resizing out: with dataset.resize=bilinear ' in note


@pytest.mark.long
def test_a_trained_vit_goes_out_and_comes_back(vit_config, images, model_images, tmp_path, logits_of):
    """From training to a file and back, for the second seed."""
    train(vit_config(), tmp_path / 'run')
    first, second = (finished_runs.load(tmp_path / 'run', i) for i in range(2))
    text = formats.export(tmp_path / 'run', 'safetensors', seed_index=1)
    location, note, *_, student, where = text.splitlines()
    assert note.startswith('preprocessor_config.json leaves resizing out')
    assert location == str(tmp_path / 'run' / 'student_safetensors')
    assert sorted(path.name for path in pathlib.Path(location).iterdir()) == [
        'config.json',
        'model.safetensors',
        'preprocessor_config.json',
    ]
    actual = import_and_compute(location, model_images)
    np.testing.assert_array_equal(actual, logits_of(second, model_images))
    assert (actual != logits_of(first, model_images)).any()
    # A supervised run has no teacher to compare with.
    assert student.startswith('student  ')
    assert where.startswith('(on ')


@pytest.mark.parametrize(
    ('changes', 'name', 'text'),
    [
        ({'activation': 'gelu'}, 'npz', 'model.activation gelu_tanh, and that of this student is gelu; use '),
        ({'epsilon': 1e-3}, 'npz', 'use --format=safetensors or --format=stablehlo or '),
        ({'pre_logits': True}, 'safetensors', 'use --format=npz or --format=stablehlo or '),
        (
            {'pre_logits': True, 'epsilon': 1e-3},
            'npz',
            'use --format=stablehlo or --format=onnx or --format=saved_model.',
        ),
        (
            {'registers': 1},
            'npz',
            'model.registers 0, and that of this student is 1; use --format=safetensors ',
        ),
        ({'registers': 2}, 'safetensors', 'multiple of the width, and that of this student is 7 of 10; use '),
        (
            {'dataset': NORMALIZATION},
            'npz',
            'dataset.image_mean (0.5, 0.5, 0.5), and that of this student is (0.485',
        ),
        ({'dataset': {'resize': 'bilinear_antialias'}}, 'npz', 'means dataset.resize bilinear, and that of '),
    ],
)
def test_a_format_that_would_change_the_model_is_refused(vit_config, changes, name, text):
    config = vit_config(**changes)
    with pytest.raises(UserError) as error:
        formats.check_format(name, config)
    assert text in str(error.value)


@pytest.mark.parametrize('name', ['npz', 'safetensors'])
def test_an_mlp_is_refused_where_a_vit_is_meant(mlp_run, name):
    before = sorted(mlp_run.rglob('*'))
    with pytest.raises(UserError, match=r'of model.name mlp; use --format=stablehlo or --format=onnx or '):
        formats.export(mlp_run, name)
    assert sorted(mlp_run.rglob('*')) == before


def test_what_is_there_already_stays(mlp_run, tmp_path):
    for path in (tmp_path / 'file', tmp_path / 'folder'):
        path.mkdir() if path.name == 'folder' else path.write_text('mine')
        with pytest.raises(UserError, match='is there already; delete it or choose another --output'):
            formats.export(mlp_run, 'stablehlo', path)
    assert (tmp_path / 'file').read_text() == 'mine'
    assert list((tmp_path / 'folder').iterdir()) == []


def test_what_breaks_leaves_nothing_behind(mlp_run, tmp_path, monkeypatch):
    def fail_for_space(path, finished):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setitem(
        formats.FORMATS, 'stablehlo', formats.FORMATS['stablehlo']._replace(write=fail_for_space)
    )
    with pytest.raises(UserError, match=r'file cannot be written: No space left on device\.'):
        formats.export(mlp_run, 'stablehlo', tmp_path / 'file')
    assert list(tmp_path.iterdir()) == []
