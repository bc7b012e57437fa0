"""The student alone, as others read it: what is written is what is read back."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.exporting import formats
from td_jax.models import base
from td_jax.pretrained.architecture import module_of
from td_jax.training import finished as finished_runs
from td_jax.training.run import train


def logits_back(location, images):
    """What the model computes that the importer makes of a file."""
    checkpoint = pretrained.read(str(location))
    module = module_of(checkpoint.architecture, split=1)
    return np.asarray(base.activations(base.from_module(module), checkpoint.params, {'image': images}).logits)


@pytest.mark.parametrize('pre_logits', [False, True])
def test_npz_comes_back_with_identical_logits(finished_vit, shown, tmp_path, pre_logits, logits_of):
    finished = finished_vit(pre_logits=pre_logits)
    formats.FORMATS['npz'].write(tmp_path / 'made.npz', finished)
    np.testing.assert_array_equal(logits_back(tmp_path / 'made.npz', shown), logits_of(finished, shown))


@pytest.mark.parametrize(
    ('activation', 'theirs', 'epsilon'), [('gelu', 'gelu', 1e-3), ('gelu_tanh', 'gelu_pytorch_tanh', 1e-6)]
)
def test_safetensors_comes_back_with_identical_logits(
    finished_vit, shown, tmp_path, activation, theirs, epsilon, logits_of
):
    finished, made = finished_vit(activation=activation, epsilon=epsilon), tmp_path / 'made'
    formats.FORMATS['safetensors'].write(made, finished)
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
    formats.FORMATS['safetensors'].write(tmp_path / 'made', finished)
    how = json.loads((tmp_path / 'made' / 'preprocessor_config.json').read_text())
    pixels = np.arange(0, 256, 51)
    theirs = (pixels * how['rescale_factor'] - how['image_mean'][0]) / how['image_std'][0]
    examples = {'image': np.broadcast_to(pixels.astype(np.uint8)[:, None, None, None], (6, 32, 32, 3))}
    ours = finished.source.inputs((), examples, None)['image']
    np.testing.assert_allclose(ours[:, 0, 0, 0], theirs, atol=1e-6)
    assert how['size'] == {'height': 32, 'width': 32}


def test_a_trained_vit_goes_out_and_comes_back(vit_config, images, shown, tmp_path, logits_of):
    """The whole way, of the second seed, which is not the first."""
    train(vit_config(), tmp_path / 'run')
    first, second = (finished_runs.load(tmp_path / 'run', i) for i in range(2))
    text = formats.export(tmp_path / 'run', 'safetensors', seed_index=1)
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
        formats.check_format(name, config)
    assert text in str(error.value)


@pytest.mark.parametrize('name', ['npz', 'safetensors'])
def test_an_mlp_is_refused_where_a_vit_is_meant(mlp_run, name):
    before = sorted(mlp_run.rglob('*'))
    with pytest.raises(UserError, match=r'of model.name mlp; use --format=stablehlo\.$'):
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
    def full(path, finished):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setitem(formats.FORMATS, 'stablehlo', formats.FORMATS['stablehlo']._replace(write=full))
    with pytest.raises(UserError, match=r'file cannot be written: No space left on device\.'):
        formats.export(mlp_run, 'stablehlo', tmp_path / 'file')
    assert list(tmp_path.iterdir()) == []
