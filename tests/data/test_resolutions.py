"""A teacher at another resolution than its student, with images in memory and from a stream."""

import json
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest

from td_jax import config as config_lib
from td_jax.configs import images as images_config
from td_jax.data import folders, images, resizing
from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.training import assembly, teachers
from td_jax.training.run import train

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'

# The views of the student and of its teacher, which takes the middle of an image.
OWN, OTHER = View(16, 'bilinear'), View(40, 'bicubic_antialias', 'center', 0.8)


@pytest.fixture
def make_config(tmp_path):
    """A function (**changes of config.dataset) -> a config on photographs of different shapes."""
    for i in range(12):
        file = tmp_path / 'own' / 'ab'[i % 2] / f'{i:02}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse_pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        PIL.Image.fromarray(coarse_pixels).resize((64 + i, 80), PIL.Image.Resampling.BICUBIC).save(file)

    def make(**changes):
        config = images_config.get_config()
        config.dataset.update({'path': str(tmp_path / 'own'), 'image_size': OWN.side, **changes})
        keys = 'image_size', 'resize', 'crop_mode', 'crop_pct'
        config.teacher.dataset.update(dict(zip(keys, OTHER, strict=True)))
        return config

    return make


def load_sources(config):
    """(source of the student, source of its teacher)."""
    source = assembly.load_source(config, config.dataset)
    return source, teachers.source_of(config, source)


def to_pixels(inputs):
    """The inputs of a model as pixels from 0 to 255."""
    return (np.asarray(inputs['image']) + 1) * 127.5


@pytest.mark.parametrize('kept_gb', [2.0, 0.0], ids=['in memory', 'streamed'])
def test_in_an_evaluation_each_model_is_shown_images_as_it_is_alone(make_config, kept_gb):
    config = make_config(kept_gb=kept_gb)
    source, teacher = load_sources(config)
    examples = source.evaluation
    if not kept_gb:
        ((examples, _),) = source.evaluation.open(2, 0, 1)
    listing = folders.list_files(folders.epath.Path(config.dataset.path))
    # A tenth of six, at least one, of each class.
    files = sorted(name for part in folders._split_files(listing, 'test')[1] for name in part)
    pixels = {name: np.asarray(PIL.Image.open(f'{config.dataset.path}/{name}')) for name in files}
    for view, of_model in ((OWN, source), (OTHER, teacher)):
        pixels_shown = to_pixels(of_model.inputs(of_model.tables, examples, None))
        assert pixels_shown.shape == (2, view.side, view.side, 3)
        expected = [np.asarray(resizing.resize_on_device(image[None], view))[0] for image in pixels.values()]
        for image in expected:
            assert np.abs(pixels_shown - image).max(axis=(1, 2, 3)).min() <= 1.01


@pytest.mark.parametrize('kept_gb', [2.0, 0.0], ids=['in memory', 'streamed'])
@pytest.mark.parametrize('min_crop_area', [0.3, 1.0], ids=['crops', 'whole'])
def test_in_training_both_see_the_same_part_of_an_image(make_config, kept_gb, min_crop_area):
    """Both get the same crop and mirroring: the teacher's image, resized, is the student's."""
    config = make_config(kept_gb=kept_gb, min_crop_area=min_crop_area, mirror_rate=0.5)
    # Of a whole image, both see the part that the student's view keeps.
    assert images.training_view(config.dataset, config.teacher.dataset) == View(40, 'bicubic_antialias')
    source, teacher = load_sources(config)
    if kept_gb:
        examples, key = source.train, jax.random.key(3)
    else:
        batch_iterator = source.train.open(5, 0, 8, slice(0, 8))
        examples, key = next(batch_iterator), None
        batch_iterator.close()
    student, other = (
        to_pixels(model_source.inputs(model_source.tables, examples, key))
        for model_source in (source, teacher)
    )
    assert (student.shape[1:3], other.shape[1:3]) == ((16, 16), (40, 40))
    smaller = np.asarray(resizing.resize_on_device(other, View(16, 'bilinear_antialias')))
    error = np.abs(smaller - student).mean(axis=(1, 2, 3))
    mirrored = np.abs(smaller[:, :, ::-1] - student).mean(axis=(1, 2, 3))
    assert error.max() < 6
    assert np.mean(error < mirrored) > 0.9
    if kept_gb:
        # Another key gives other crops.
        assert np.abs(student - to_pixels(source.inputs((), examples, jax.random.key(4)))).mean() > 6


def test_a_student_sees_the_same_with_a_teacher_and_without(make_config):
    config = make_config()
    alone = config.copy_and_resolve_references()
    alone.method, alone.model.initial = 'supervised', 'random'
    source, _ = load_sources(config)
    other = assembly.load_source(alone, alone.dataset)
    assert other.train.keys() == {'image', 'labels'}
    assert source.train.keys() == {'image', 'teacher_image', 'labels'}
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(
            source.inputs((), source.train, key)['image'], other.inputs((), other.train, key)['image']
        )


def test_a_teacher_of_clean_inputs_is_shown_training_images_as_in_an_evaluation(make_config):
    config = make_config()
    config.teacher.inputs = 'clean'
    source, _ = load_sources(config)
    file = folders.list_files(folders.epath.Path(config.dataset.path)).files['train'][0][-1]
    image = np.asarray(PIL.Image.open(f'{config.dataset.path}/{file}'))
    expected = resizing.resize_by_pillow(image, OTHER).astype(int)
    assert np.abs(source.train['teacher_image'] - expected).max(axis=(1, 2, 3)).min() == 0


def test_what_is_kept_as_it_was_taken_is_kept_once(cifar10_data):
    """On CIFAR each model resizes the same image, and crops have the same corners."""
    config = images_config.get_config()
    config.dataset.update({'name': 'cifar10', 'image_size': 16, 'min_crop_area': 0.5})
    config.teacher.dataset.image_size = 64
    source, teacher = load_sources(config)
    assert source.train.keys() == {'image', 'labels'}
    examples = {name: array[:6] for name, array in source.train.items()}
    for key in (None, jax.random.key(1)):
        student, other = (
            to_pixels(model_source.inputs((), examples, key)) for model_source in (source, teacher)
        )
        assert other.shape == (6, 64, 64, 3)
        smaller = np.asarray(resizing.resize_on_device(other, View(16, 'bilinear_antialias')))
        plain = np.asarray(resizing.resize_on_device(student, View(16, 'bilinear_antialias')))
        assert np.abs(smaller - plain).mean() < 12
        assert np.corrcoef(smaller.ravel(), plain.ravel())[0, 1] > 0.95


SMALL = {
    **{'num_seeds': 1, 'num_steps': 2, 'batch_size': 4, 'eval_batch_size': 4, 'diagnostics': False},
    **{'optimizer.warmup_steps': 0, 'communication.hidden': 8, 'communication.message': 6},
    **{'model.initial': 'random', 'model.layers': 1, 'model.split': 1, 'model.width': 8, 'model.mlp': 8},
    **{'model.heads': 2, 'teacher.labels': 'probe'},
    # The teacher is for images of 32 pixels; its position embeddings are resized.
    **{
        'teacher.pretrained': str(GOLDEN / 'vit_tiny.npz'),
        'teacher.model.width': 48,
        'teacher.model.mlp': 96,
    },
}


@pytest.mark.long
@pytest.mark.parametrize('kept_gb', [2.0, 0.0], ids=['in memory', 'streamed'])
def test_a_student_learns_from_a_teacher_of_another_resolution(make_config, tmp_path, kept_gb):
    config = make_config(kept_gb=kept_gb)
    config.update_from_flattened_dict(SMALL)
    # The preprocessing of the checkpoint.
    config.teacher.dataset.update({'resize': 'bilinear', 'crop_mode': 'squash', 'crop_pct': 1.0})
    result = train(config, tmp_path / 'run')
    assert result['steps'] == 2
    stored = json.loads((tmp_path / 'run' / workdir.CONFIG).read_text())
    assert (stored['dataset']['image_size'], stored['teacher']['dataset']['image_size']) == (16, 40)
    # The run continues; with another resolution it is another run.
    assert train(config, tmp_path / 'run') == result
    config.teacher.dataset.image_size = 48
    with pytest.raises(UserError, match=r'teacher\.dataset\.image_size \(40 there, 48 here\)'):
        train(config, tmp_path / 'run')


def test_a_side_that_patches_do_not_divide_is_named(make_config):
    config = make_config()
    config.teacher.dataset.image_size = 44
    with pytest.raises(
        UserError, match=r'^teacher\.dataset\.image_size is 44, which the patches of teacher\.m'
    ):
        config_lib.check(config)


def test_the_same_resolution_set_or_not_is_the_same_run(make_config):
    config = make_config()
    config.teacher.dataset.update(images_config.get_config().teacher.dataset)
    explicit = config.copy_and_resolve_references()
    explicit.teacher.dataset.update(
        {'image_size': 16, 'resize': 'bilinear', 'crop_mode': 'squash', 'crop_pct': 1.0}
    )
    assert config_lib.digest(explicit) == config_lib.digest(config)
    stored = json.loads(config_lib.to_json(config))
    for key in ('image_size', 'resize', 'crop_mode', 'crop_pct'):
        # An older version did not store these keys.
        del stored['teacher']['dataset'][key]
    assert config_lib.differences(explicit, stored) == {}
    run = config_lib.teacher_run(explicit)
    assert config_lib.digest(run) == config_lib.digest(config_lib.teacher_run(config))
