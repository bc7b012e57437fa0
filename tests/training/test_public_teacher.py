"""A public checkpoint that configures its teacher: what it sets, what is refused, and a run with it."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
from safetensors.numpy import load_file, save_file

from td_jax import compare, own
from td_jax import config as config_lib
from td_jax.configs import images, vit_imagenet, vit_imagenet_352
from td_jax.data import images as image_data
from td_jax.devices import sharding
from td_jax.errors import Missing, UserError
from td_jax.files import workdir
from td_jax.models import base, resnet_bn
from td_jax.training import assembly, preflight, public_teacher, teachers
from td_jax.training.programs import Programs
from tests.pretrained import test_bit, test_timm

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'
SMALL = {
    **{'num_seeds': 1, 'num_steps': 2, 'batch_size': 4, 'eval_batch_size': 4, 'diagnostics': False},
    **{'optimizer.warmup_steps': 0, 'communication.hidden': 8, 'communication.message': 6},
}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of twelve photographs of two classes."""
    folder = tmp_path_factory.mktemp('photos')
    for i in range(12):
        file = folder / ('cat', 'dog')[i % 2] / f'{i:02}.png'
        file.parent.mkdir(exist_ok=True)
        coarse_pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        PIL.Image.fromarray(coarse_pixels).resize((40 + i, 36), PIL.Image.Resampling.BICUBIC).save(file)
    return folder


@pytest.fixture
def complete_config(photos, tmp_path):
    """A function (checkpoint, **options, keys with __ for dots) -> the completed configs/images.py."""

    def make(checkpoint, *, any_method=False, **changes):
        config = images.get_config()
        config.update_from_flattened_dict(SMALL)
        changes = {key.replace('__', '.'): value for key, value in changes.items()}
        changes |= {'dataset.path': str(photos), 'teacher.pretrained': str(checkpoint), **changes}
        config.update_from_flattened_dict(changes)
        return public_teacher.complete(config, tmp_path / 'run', list(changes), any_method=any_method)

    return make


def check_preflight(config, folder):
    return preflight._check_alone(config, folder, sharding.make_mesh(config), Programs())


def copy_with_names(folder, names):
    """A copy of the classifier whose labels have names."""
    shutil.copytree(CLASSIFIER, folder)
    config = json.loads((folder / 'config.json').read_text())
    config['id2label'] = dict(enumerate(names))
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ('name', 'method'),
    [
        ('hf_dinov2_registers_tiny', 'ld'),
        ('bit', 'ld'),
        pytest.param('vit_tiny.npz', 'td', marks=pytest.mark.long),
        pytest.param('resnet', 'td', marks=pytest.mark.long),
    ],
)
def test_a_config_for_another_teacher_takes_any_checkpoint(
    complete_config, tmp_path, monkeypatch, name, method
):
    location = GOLDEN / name
    if name == 'resnet':
        sizes = resnet_bn.VARIANTS['resnet18']._replace(units=(1, 2, 1, 1))
        monkeypatch.setitem(resnet_bn.VARIANTS, 'resnet18', sizes)
        location, _ = test_timm.write_folder(tmp_path, 'resnet18', {'architecture': 'resnet18'})
    if name == 'bit':
        location = tmp_path / 'bit.npz'
        np.savez(location, **test_bit.make_weights(8))
    config = complete_config(location, method=method)
    assert config.model.initial == ('random' if name in ('bit', 'resnet') else 'teacher')
    check_preflight(config, tmp_path / 'run')


@pytest.mark.long
def test_the_command_reports_what_it_sets_and_trains(run_command, complete_config, photos, tmp_path):
    arguments = [
        '--config=td_jax/configs/images.py',
        f'--config.dataset.path={photos}',
        f'--config.teacher.pretrained={BARE}',
        f'--workdir={tmp_path / "run"}',
        '--config.method=ld',
        *(f'--config.{key}={value}' for key, value in SMALL.items()),
    ]
    code, _, error = run_command('main', *arguments)
    assert code == 0, error
    lines = error.splitlines()
    assert lines[0].startswith(f'{BARE} sets dataset.image_size=32 dataset.resize=bilinear_antialias ')
    assert ' teacher.model.width=48' in lines[0] and ' model.width=48 ' in lines[0]
    assert lines[1] == (
        'teacher.labels=probe: the checkpoint has no head; a linear probe on the teacher is fitted to the '
        "student's labels first"
    )
    stored = json.loads((tmp_path / 'run' / workdir.CONFIG).read_text())
    assert {key: stored['teacher']['model'][key] for key in ('width', 'layers', 'split', 'patch')} == {
        **{'width': 48, 'layers': 6, 'split': 3, 'patch': 8}
    }
    assert stored['teacher']['labels'] == 'probe'
    # The stored config is complete: nothing more is set.
    full = config_lib.from_json(stored)
    assert public_teacher.complete(full, tmp_path / 'run') == full
    # The short and the stored config are the same run.
    result = json.loads((tmp_path / 'run' / workdir.RESULT).read_text())
    short = complete_config(BARE, method='ld')
    assert config_lib.differences(short, stored) == {}
    assert config_lib.digest(short) == config_lib.digest(full)
    for config in (short, full):
        assert own.train(config, tmp_path / 'run') == result


@pytest.mark.parametrize(
    ('key', 'text'),
    [
        ('teacher__model__split', r'^teacher\.model\.split is 9; with 6 blocks'),
        ('model__split', r'^model\.split is 9; with \d blocks'),
    ],
)
def test_a_split_outside_the_blocks_is_refused(complete_config, tmp_path, key, text):
    config = complete_config(BARE, **{key: 9})
    with pytest.raises(UserError, match=text):
        check_preflight(config, tmp_path / 'run')


@pytest.mark.parametrize(('layers', 'text'), [(6, ''), (9, 'the student has 9 blocks and the teacher that')])
def test_more_blocks_than_the_checkpoint_has_are_reported(complete_config, photos, layers, text, capsys):
    config = complete_config(BARE, model__layers=layers)
    source = assembly.load_source(config, config.dataset)
    preflight._check_start(config, source, source)
    err = capsys.readouterr().err
    assert text in err and ('warning' in err) == bool(text)


def test_labels_that_differ_take_a_probe(complete_config, tmp_path, capsys):
    other_labels = copy_with_names(tmp_path / 'others', 'abcdefg')
    assert complete_config(other_labels, method='ld').teacher.labels == 'probe'
    assert 'the checkpoint predicts 7 labels, and the student 2 others (cat, dog);' in capsys.readouterr().err
    # FitNet has no term that compares predictions.
    assert complete_config(other_labels, method='fitnet').teacher.labels == 'shared'
    # Methods that it is compared with may have one.
    assert complete_config(other_labels, method='fitnet', any_method=True).teacher.labels == 'probe'
    # The methods of a comparison may read the teacher where that of the config does not.
    of_ld = complete_config(other_labels, method='ld')
    of_any = complete_config(other_labels, method='supervised', any_method=True)
    assert of_any.teacher.to_dict() == of_ld.teacher.to_dict()
    assert of_ld.teacher.to_dict() != complete_config(other_labels, method='supervised').teacher.to_dict()
    capsys.readouterr()
    # The config says otherwise.
    for labels in ('shared', 'auxiliary'):
        assert complete_config(other_labels, method='ld', teacher__labels=labels).teacher.labels == labels
    assert 'teacher.labels' not in capsys.readouterr().err


def test_labels_that_are_the_same_are_compared(complete_config, tmp_path, photos, monkeypatch):
    folder = tmp_path / 'same'
    for name in 'gfedcba':
        shutil.copytree(photos / 'cat', folder / name)
    same_labels = copy_with_names(tmp_path / 'checkpoint', 'abcdefg')
    assert complete_config(same_labels, method='ld', dataset__path=str(folder)).teacher.labels == 'shared'
    assert complete_config(CLASSIFIER, method='ld', dataset__path=str(folder)).teacher.labels == 'shared'


def test_a_head_of_zeros_takes_a_probe_as_none_does(complete_config, tmp_path, capsys):
    shutil.copytree(CLASSIFIER, tmp_path / 'zeros')
    file = tmp_path / 'zeros/model.safetensors'
    arrays = load_file(file)
    arrays['classifier.weight'][:] = 0
    save_file(arrays, file)
    assert complete_config(tmp_path / 'zeros', method='ld').teacher.labels == 'probe'
    assert 'teacher.labels=probe: the checkpoint has a head of zeros; a linear' in capsys.readouterr().err


def test_a_run_that_has_lost_its_data_is_still_the_same(complete_config, tmp_path):
    other_labels = copy_with_names(tmp_path / 'others', 'abcdefg')
    missing_folder = str(tmp_path / 'gone')
    with pytest.raises(Missing):
        complete_config(other_labels, method='ld', dataset__path=missing_folder)
    (tmp_path / 'run').mkdir()
    stored = complete_config(other_labels, method='ld')
    (tmp_path / 'run' / workdir.CONFIG).write_text(config_lib.to_json(stored))
    assert complete_config(other_labels, method='ld', dataset__path=missing_folder).teacher.labels == 'probe'


def test_a_config_that_names_its_checkpoint_says_what_it_changes(photos, tmp_path):
    """Options other than the defaults count as set, and so does the split of a named model."""
    config = images.get_config()
    config.teacher.pretrained = str(BARE)
    with pytest.raises(UserError, match=r'teacher\.model\.width is 48 there, 128 here'):
        own.train(config, tmp_path / 'run')
    for model in (config.model, config.teacher.model):
        model.update({'name': 'mlp', 'variant': 'B/32', 'width': 0, 'mlp': 0, 'heads': 0, 'split': 1})
    config.teacher.model.layers = 0
    completed_config = public_teacher.complete(config, tmp_path / 'run')
    assert (completed_config.model.split, completed_config.teacher.model.split) == (2, 3)
    config.model.name = config.teacher.model.name = 'vit'
    completed_config = public_teacher.complete(config, tmp_path / 'run')
    assert (completed_config.model.split, completed_config.teacher.model.split) == (1, 1)


def test_what_only_compiles_takes_the_checkpoint_without_its_data(tmp_path):
    config = vit_imagenet.get_config()
    config.teacher.pretrained = str(BARE)
    config.method = 'ld'
    completed_config = public_teacher.complete_architecture(config, ['teacher.pretrained'])
    assert (
        completed_config.teacher.model.width,
        completed_config.teacher.model.split,
        completed_config.model.width,
    ) == (48, 3, 48)
    assert (
        completed_config.model.layers,
        completed_config.dataset.image_size,
        completed_config.teacher.labels,
    ) == (4, 32, 'probe')


def test_the_config_of_352_pixels_takes_a_checkpoint_of_384(tmp_path):
    """It is the config of 384 with one other value; the original resizes positions by scipy.ndimage.zoom."""
    config = vit_imagenet_352.get_config()
    flat, other = map(config_lib.flatten, (config, vit_imagenet.get_config()))
    assert {key: value for key, value in flat.items() if value != other[key]} == {'dataset.image_size': 352}

    arrays = dict(np.load(GOLDEN / 'vit_tiny_prelogits.npz'))
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1, 145, 48)).astype(np.float32)
    arrays |= {'Transformer/posembed_input/pos_embedding': positions}
    arrays |= {'embedding/kernel': rng.normal(size=(32, 32, 3, 48)).astype(np.float32)}
    np.savez(tmp_path / 'at384.npz', **arrays)
    config.teacher.pretrained = str(tmp_path / 'at384.npz')
    config = public_teacher.complete_architecture(config, ['teacher.pretrained'])
    assert (config.model.width, config.model.layers, config.dataset.image_size) == (48, 4, 352)

    source = image_data.abstract_source(config.dataset, config.dataset)
    model, source, params = teachers.load(config, tmp_path, teachers.source_of(config, source))
    expected = scipy.ndimage.zoom(positions[0, 1:].reshape(12, 12, 48), (11 / 12, 11 / 12, 1), order=1)
    np.testing.assert_array_equal(params['pos_embedding'][0, 1:], expected.reshape(121, 48))
    represent = functools.partial(base.activations, model)
    upper = jax.eval_shape(represent, params, assembly.one_input(source)).upper
    assert upper.shape == (1, 122, 48)


@pytest.mark.long
def test_a_report_of_the_compiler_is_of_the_checkpoint_that_was_typed(run_command):
    code, _, error = run_command(
        'tpu_report',
        '--config=td_jax/configs/vit_imagenet.py',
        '--topology=v5e:2x2',
        f'--config.teacher.pretrained={BARE}',
        '--config.teacher.model.layers=5',
    )
    assert (code, error) == (
        2,
        f'td_jax: {BARE} does not match what is set: teacher.model.layers is 6 there, 5 here; leave '
        'teacher.model.layers out.\n',
    )


@pytest.mark.long
def test_methods_are_compared_with_a_checkpoint_alone(photos, tmp_path):
    config = images.get_config()
    config.update_from_flattened_dict(SMALL)
    changes = {'dataset.path': str(photos), 'teacher.pretrained': str(BARE)}
    changes |= {'model.layers': 1, 'model.split': 1}
    config.update_from_flattened_dict(changes)
    record = compare.run(config, tmp_path, methods=('ld',), fixed=list(changes), trials=0, seeds=2)
    assert [row['variant'] for row in record['rows']] == ['supervised', 'ld']


def test_a_run_without_a_teacher_reads_no_checkpoint(complete_config, tmp_path):
    config = complete_config(tmp_path / 'none', method='supervised', model__initial='random')
    assert config.model.width == 128


@pytest.mark.long
@pytest.mark.parametrize('name', ['dinov2_small_saliency', 'efficientnet_lite0'])
def test_a_real_model_teaches(foundation, complete_config, tmp_path, name):
    """Both as published by their authors, at a small image size to save time."""
    config = complete_config(
        foundation(name), method='ld', teacher__dataset__image_size=56, dataset__image_size=56
    )
    is_vit = name.startswith('dinov2')
    assert (config.model.initial, config.model.variant) == (
        ('teacher', 'S/14') if is_vit else ('random', 'Ti/8')
    )
    assert config.teacher.labels == 'probe'
    result = own.train(config, tmp_path / 'run')
    assert result['steps'] == 2 and np.isfinite(result['values']).all()
    # At its published size it only has to pass the checks.
    config = complete_config(foundation(name))
    assert config.teacher.dataset.image_size == 224
    check_preflight(config, tmp_path / 'run')


@pytest.mark.long
@pytest.mark.usefixtures('imagenet_data')
def test_the_config_of_imagenet_trains_with_a_real_teacher(foundation, tmp_path):
    """The config as it is, in micro batches, but smaller; the teacher has no head."""
    changes = {
        **{'num_steps': 2, 'batch_size': 8, 'eval_batch_size': 80, 'optimizer.warmup_steps': 1},
        **{'dataset.image_size': 28, 'dataset.shuffle_buffer': 64, 'diagnostics': False},
        'teacher.pretrained': str(foundation('dinov2_small_saliency')),
    }
    config = vit_imagenet.get_config()
    config.update_from_flattened_dict(changes)
    config = public_teacher.complete(config, tmp_path, list(changes))
    assert (config.micro_batches, config.model.layers, config.model.initial) == (4, 4, 'teacher')
    result = own.train(config, tmp_path / 'run')
    assert result['steps'] == 2 and np.isfinite(result['values']).all()
