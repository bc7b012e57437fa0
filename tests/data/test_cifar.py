"""CIFAR-10 as it is cut for a task, held against what TFDS reads."""

import functools
import hashlib
import socket

import jax
import numpy as np
import pytest

from td_jax.configs import common, vit_tiny_cifar10
from td_jax.data import SOURCES, base, cifar, images, prepared, resizing
from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.training import assembly

HALF = (0.5, 0.5, 0.5)
VIEW = View(48, 'bilinear')
pytestmark = pytest.mark.usefixtures('cifar10_data')


def load(split='test', classes=(), examples_per_class=0, **changes):
    config = common.get_config()
    config.dataset.update({'name': 'cifar10', 'split': split, 'labelled_by': 'first', **changes})
    task = config.teacher.dataset
    task.update({'classes': classes, 'examples_per_class': examples_per_class})
    return SOURCES['cifar10'](config.dataset, task)


@functools.cache
def load_plainly(split, is_decoded=True):
    """(images, labels) in the order of the files; images are None if not decoded, which takes long."""
    import tensorflow_datasets as tfds

    decoders = None if is_decoded else tfds.decode.PartialDecoding({'label': True})
    examples = tfds.as_numpy(tfds.load('cifar10', split=split, batch_size=-1, decoders=decoders))
    return examples.get('image'), examples['label']


def load_labels(part):
    return load_plainly(part, is_decoded=False)[1]


def test_labels_are_all_there():
    source = load()
    for examples, part, of_each in ((source.train, 'train', 5000), (source.evaluation, 'test', 1000)):
        np.testing.assert_array_equal(examples['labels'], load_labels(part))
        assert np.bincount(examples['labels']).tolist() == [of_each] * 10
        assert examples['image'].shape == (10 * of_each, 32, 32, 3)
    assert source.label_names[:3] == ('airplane', 'automobile', 'bird')
    assert len(source.label_names) == 10


@pytest.mark.parametrize(
    ('part', 'start', 'stop'),
    [('train', 0, 999), ('train', 44_600, 45_400), ('train', 49_000, 50_000), ('test', 0, 10_000)],
)
def test_pixels_are_those_of_a_plain_load(part, start, stop):
    source = load()
    examples = {'train': source.train, 'test': source.evaluation}[part]
    pixels, labels = load_plainly(f'{part}[{start}:{stop}]')
    assert examples['image'].dtype == np.uint8
    np.testing.assert_array_equal(examples['image'][start:stop], pixels)
    np.testing.assert_array_equal(examples['labels'][start:stop], labels)


def test_the_validation_slice_is_the_last_tenth_of_training():
    everything, source = load().train, load('validation')
    for examples, rows in ((source.train, slice(0, 45_000)), (source.evaluation, slice(45_000, None))):
        np.testing.assert_array_equal(examples['image'], everything['image'][rows])
        np.testing.assert_array_equal(examples['labels'], everything['labels'][rows])


@pytest.mark.parametrize('classes', [(2, 5, 7), (7, 2, 5)])
def test_labels_are_positions_in_the_tasks_classes(classes):
    source, everything = load(classes=classes), load()
    for examples, all_of_them in (
        (source.train, everything.train),
        (source.evaluation, everything.evaluation),
    ):
        chosen = np.isin(all_of_them['labels'], classes)
        np.testing.assert_array_equal(np.take(classes, examples['labels']), all_of_them['labels'][chosen])
        np.testing.assert_array_equal(examples['image'], all_of_them['image'][chosen])
    assert source.label_names == tuple(everything.label_names[c] for c in classes)


def test_examples_per_class_keeps_the_first_of_each_and_all_of_the_evaluation():
    few, everything = load(classes=(1, 8), examples_per_class=7), load().train
    rows = np.sort(np.concatenate([np.flatnonzero(everything['labels'] == c)[:7] for c in (1, 8)]))
    np.testing.assert_array_equal(few.train['image'], everything['image'][rows])
    np.testing.assert_array_equal(np.take((1, 8), few.train['labels']), everything['labels'][rows])
    assert len(few.evaluation['labels']) == 2000


def test_a_seed_draws_as_many_of_each_outside_of_the_validation_slice():
    """Examples that a search is evaluated on are never drawn; the others are drawn as for a test."""
    tested, searched = (
        load(split, classes=(1, 8), examples_per_class=7, labelled_by='seed').train
        for split in ('test', 'validation')
    )
    everything = load().train
    of_classes = np.flatnonzero(np.isin(everything['labels'], (1, 8)))
    rows = tested.rows(3)
    assert np.bincount(tested.examples['labels'][rows]).tolist() == [7, 7]
    assert of_classes[rows].max() < 45_000
    np.testing.assert_array_equal(tested.examples['image'][rows], everything['image'][of_classes[rows]])
    np.testing.assert_array_equal(searched.rows(3), rows)
    assert base.count(searched.examples) < base.count(tested.examples) == 10_000
    assert not np.array_equal(tested.rows(4), rows)


def test_the_half_of_a_test_image_is_the_last_bit_of_the_digest_of_its_pixels():
    everything, *halves = (
        load(classes=(8, 1), test_part=part) for part in ('all', 'development', 'held_out')
    )
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in everything.evaluation['image']]
    for half, source in enumerate(halves):
        rows = [row for row, digest in enumerate(digests) if int(digest[-1], 16) % 2 == half]
        assert len(rows) > 900
        for name, array in source.evaluation.items():
            np.testing.assert_array_equal(array, everything.evaluation[name][rows])


def test_inputs_are_varied_with_a_key_alone():
    source = load(image_size=48, min_crop_area=0.3, mirror_rate=0.5)
    examples = {'image': source.train['image'][:4]}
    inputs = source.inputs(source.tables, examples, None)['image']
    assert inputs.shape == (4, 48, 48, 3)
    np.testing.assert_array_equal(
        inputs, images.normalize(resizing.resize_on_device(examples['image'], VIEW), HALF, HALF)
    )
    key = jax.random.key(0)
    inputs = source.inputs(source.tables, examples, key)['image']
    expected = images.normalize(images.vary(examples['image'], VIEW, key, 0.3, 0.5), HALF, HALF)
    np.testing.assert_array_equal(inputs, expected)
    assert -1 <= inputs.min() < inputs.max() <= 1


def test_a_task_has_its_own_mean_and_deviation():
    """Student and teacher normalise the same image differently."""
    config = common.get_config()
    config.dataset.update({'name': 'cifar10', 'image_size': 21, 'resize': 'bilinear_antialias'})
    config.teacher.dataset.update({'image_mean': (0.1, 0.2, 0.3), 'image_std': (0.4, 0.6, 0.7)})
    student, teacher = (
        SOURCES['cifar10'](config.dataset, x) for x in (config.dataset, config.teacher.dataset)
    )
    examples = {'image': student.train['image'][:4]}
    pixels = np.asarray(resizing.resize_on_device(examples['image'], View(21, 'bilinear_antialias'))) / 255
    inputs = teacher.inputs(teacher.tables, examples, None)['image']
    expected = (pixels - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.6, 0.7])
    np.testing.assert_allclose(inputs, expected, rtol=0, atol=1e-5)
    inputs = student.inputs(student.tables, examples, None)['image']
    np.testing.assert_allclose(inputs, 2 * pixels - 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('task', 'message'),
    [
        ({'classes': (3, 10)}, r'dataset.classes is \(3, 10\); cifar10 has different numbers from 0 to 9'),
        ({'classes': (3, 3)}, r'dataset.classes is \(3, 3\)'),
        ({'classes': (-1,)}, r'dataset.classes is \(-1,\)'),
        ({'examples_per_class': 5001}, r'dataset.examples_per_class is 5001; only 5000 training images'),
    ],
)
def test_what_is_not_there_is_refused(task, message):
    with pytest.raises(UserError, match=message):
        load(**task)


def test_the_files_are_read_once():
    assert cifar.read('cifar10') is cifar.read('cifar10')


@pytest.mark.parametrize('name', ['cifar10', 'movielens/100k-ratings'])
def test_missing_data_is_reported_with_the_folder_that_was_searched(monkeypatch, tmp_path, name):
    import tensorflow_datasets as tfds

    def fail_to_resolve(*_):
        raise OSError('no network')

    build = tfds.builder
    monkeypatch.setattr(tfds, 'builder', lambda name: build(name, data_dir=str(tmp_path)))
    monkeypatch.setattr(socket, 'getaddrinfo', fail_to_resolve)
    with pytest.raises(UserError, match='not prepared') as error_info:
        prepared.builder(name)
    assert f'under {tmp_path} and' in str(error_info.value)
    assert f'tfds build {name}' in str(error_info.value)


def write_images(write_prepared, labels):
    """Writes {part: labels} of black images as CIFAR-10."""
    import tensorflow_datasets as tfds

    features = {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(32, 32, 3)),
        'label': tfds.features.ClassLabel(num_classes=30),
    }
    image = np.zeros((32, 32, 3), np.uint8)
    splits = {
        part: [{'id': f'{part}_{i}', 'image': image, 'label': label} for i, label in enumerate(part_labels)]
        for part, part_labels in labels.items()
    }
    return write_prepared('cifar10', '3.0.2', 'image_classification.cifar', features, splits)


@pytest.fixture
def empty_cache():
    """Empties the cache before and after a test."""
    cifar.read.cache_clear()
    yield
    cifar.read.cache_clear()


@pytest.mark.usefixtures('empty_cache')
def test_images_of_no_class_are_refused_and_not_left_out(write_prepared):
    write_images(write_prepared, {'train': [3] * 10 + [12] + [4] * 9, 'test': [1]})
    with pytest.raises(UserError, match=r'^dataset cifar10, train: label of row \d+ is 12; .* from 0 to 9\.'):
        load()


@pytest.mark.usefixtures('empty_cache')
@pytest.mark.parametrize(
    ('labels', 'classes', 'message'),
    [
        ({'train': [3] * 20, 'test': [4]}, (3, 5), 'cifar10 3, 5 has no evaluation examples'),
        ({'train': [4] * 20, 'test': [3]}, (3, 5), 'cifar10 3, 5 has no training examples'),
        ({'train': [3] * 20, 'test': []}, (), 'cifar10 '),
        ({'train': [], 'test': [1]}, (), 'cifar10 '),
    ],
)
def test_a_part_without_images_is_refused(write_prepared, labels, classes, message):
    write_images(write_prepared, labels)
    config = vit_tiny_cifar10.get_config()
    config.dataset.classes, config.dataset.examples_per_class = classes, 0
    with pytest.raises(UserError, match=f'^dataset {message}[^\n]*$'):
        assembly.load_source(config, config.dataset)


@pytest.mark.usefixtures('empty_cache')
def test_images_that_are_damaged_are_refused(write_prepared):
    place = write_images(write_prepared, {'train': [3] * 20, 'test': [4]})
    (file,) = place.glob('*train.tfrecord*')
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match=r'^dataset cifar10 cannot be read: [^\n]+$'):
        load()
