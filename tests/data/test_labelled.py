"""Which training examples of a class a seed draws, of every data set that has classes."""

import hashlib

import numpy as np
import PIL.Image
import pytest

from td_jax import randomness
from td_jax.configs import digits as digits_config
from td_jax.configs import images as images_config
from td_jax.data import base, digits, folders, images
from td_jax.errors import UserError
from td_jax.training import dispatch


def test_a_draw_by_hand(monkeypatch):
    """The examples with the lowest lots of each class; those of the validation slice come last."""
    monkeypatch.setattr(base, 'derive_seed', lambda number, name: (number, name) == (9, 'labelled') and 123)
    lots = np.random.PCG64(123).random_raw(10) // 10**17
    assert lots.tolist() == [125, 9, 40, 34, 32, 149, 170, 51, 151, 164]
    labels, places = np.array([0, 1, 0, 1, 0, 1, 1]), np.array([0, 1, 2, 3, 5, 7, 8])
    nobody = np.zeros(7, bool)
    # Class 0 has the lots 125, 40 and 149; class 1 has 9, 34, 51 and 151.
    assert base.draw_rows(9, labels, 2, places, nobody).tolist() == [0, 1, 2, 3]
    held_back = np.array([True, True, False, False, False, False, False])
    assert base.draw_rows(9, labels, 2, places, held_back).tolist() == [2, 3, 4, 5]
    assert base.draw_rows(9, labels, 3, places, held_back).tolist() == [0, 2, 3, 4, 5, 6]
    # The same examples at other rows have the same lots.
    part = np.array([1, 2, 4, 5, 6])
    assert part[base.draw_rows(9, labels[part], 1, places[part], nobody[part])].tolist() == [1, 2]


def load_digits_source(split, of_each, labelled_by='seed', classes=(5, 6, 7)):
    config = digits_config.get_config()
    config.dataset.split, config.dataset.labelled_by = split, labelled_by
    config.dataset.classes, config.dataset.examples_per_class = classes, of_each
    return digits.load(config.dataset, config.dataset)


def make_image_source(split, of_each, labelled_by='seed', classes=(1, 0), count=40):
    """Numbered images of three alternating classes; the last fifth is the validation slice."""
    config = images_config.get_config()
    config.dataset.split, config.dataset.labelled_by = split, labelled_by
    config.dataset.classes, config.dataset.examples_per_class = classes, of_each
    numbers = np.arange(count, dtype=np.uint8)
    everything = {
        'image': numbers[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8),
        'labels': numbers % 3,
    }
    train_count = count if split == 'test' else 4 * count // 5
    train = base.take(everything, np.arange(train_count))
    held_back = count // 5 if split == 'test' else 0
    return images.source_in_memory(
        'own', tuple('abc'), (train, train), config.dataset, config.dataset, contents=(), held_back=held_back
    )


def load_folder(split, of_each, labelled_by='seed', classes=(), folder=None, **changes):
    config = images_config.get_config()
    config.dataset.update({'name': 'images', 'path': str(folder), 'image_size': 4, 'min_crop_area': 1.0})
    config.dataset.split, config.dataset.labelled_by = split, labelled_by
    config.dataset.classes, config.dataset.examples_per_class = classes, of_each
    config.dataset.update({'mirror_rate': 0.0, **changes})
    return folders.load(config.dataset, config.dataset)


@pytest.fixture
def load(request, tmp_path, monkeypatch):
    """A function (split, of_each, ...) -> Source, of a data set by name."""
    if request.param != 'folder':
        return {'digits': load_digits_source, 'images': make_image_source}[request.param]
    # Several files per span, as in a large folder.
    monkeypatch.setattr(folders, 'MAX_SPANS', 4)
    number = 0
    for name in 'ab':
        (tmp_path / name).mkdir()
        for _ in range(30):
            pixels = np.full((4, 4, 3), number, np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / name / f'{number}.png')
            number += 1

    def load_folder_source(*arguments, **named):
        return load_folder(*arguments, folder=tmp_path, **named)

    return load_folder_source


def draw_examples(source, number):
    """{bytes of an image: label} of the examples that a seed trains on."""
    examples = base.take(source.train.examples, source.train.rows(number))
    assert source.train.count == base.count(source.train) == len(examples['labels'])
    label_by_image = {
        image.tobytes(): label
        for image, label in zip(examples['image'], examples['labels'].tolist(), strict=True)
    }
    assert len(label_by_image) == source.train.count
    return label_by_image


SETS = pytest.mark.parametrize('load', ['digits', 'images', 'folder'], indirect=True)


@SETS
def test_every_seed_draws_as_many_of_each_class_and_others_than_the_next(load):
    source = load('test', 5)
    base.check(source)
    classes = range(len(source.label_names))
    seeds = [draw_examples(source, number) for number in (1, 2)]
    for label_by_image in seeds:
        assert np.bincount(list(label_by_image.values())).tolist() == [5 for _ in classes]
        # All are of the pool, with the labels that they have there.
        pool = source.train.examples
        everything = {
            image.tobytes(): label for image, label in zip(pool['image'], pool['labels'], strict=True)
        }
        assert label_by_image.items() <= everything.items()
    assert seeds[0] != seeds[1]
    assert draw_examples(load('test', 5), 1) == seeds[0]


@SETS
def test_a_search_trains_on_the_examples_of_training_for_the_test(load):
    searched, tested = load('validation', 5), load('test', 5)
    assert base.count(searched.train.examples) < base.count(tested.train.examples)
    for number in range(4):
        assert draw_examples(searched, number) == draw_examples(tested, number)


@SETS
def test_fewer_examples_are_among_more(load):
    fewer, more = load('test', 2), load('test', 7)
    assert draw_examples(fewer, 3).items() < draw_examples(more, 3).items()


@SETS
def test_the_first_of_each_are_the_same_for_all(load):
    source, again = load('test', 5, 'first'), load('validation', 5, 'first')
    assert isinstance(source.train, dict)
    assert len(source.train['labels']) == len(again.train['labels']) == 5 * len(source.label_names)


@SETS
def test_where_nothing_is_chosen_nothing_is_drawn(load):
    assert isinstance(load('test', 0).train, dict)


@SETS
def test_more_examples_than_there_are_are_refused(load):
    with pytest.raises(
        UserError, match=r'^dataset\.examples_per_class is 500; only \d+ training images of a'
    ):
        load('test', 500)


def test_the_draw_of_a_class_does_not_depend_on_the_other_classes():
    alone, among = (
        load_digits_source('test', 4, classes=(6,)),
        load_digits_source('test', 4, classes=(5, 6, 7)),
    )
    of_class = {image for image, label in draw_examples(among, 2).items() if label == 1}
    assert draw_examples(alone, 2).keys() == of_class


@pytest.mark.parametrize('load', ['folder'], indirect=True)
def test_a_stream_draws_what_is_drawn_in_memory(load):
    in_memory, streamed = load('test', 5), load('test', 5, kept_gb=0.0)
    assert (streamed.train.count, streamed.train.host_bytes) == (10, 80)
    for number in (1, 2):
        batch_iterator = streamed.train.open(number, 0, 5, slice(0, 5))
        batches = [next(batch_iterator) for _ in range(2)]
        batch_iterator.close()
        label_by_image = {
            image.tobytes(): label
            for batch in batches
            for image, label in zip(batch['image'], batch['labels'].tolist(), strict=True)
        }
        assert label_by_image == draw_examples(in_memory, number)


def test_what_a_run_keeps_of_a_pool_is_what_its_seeds_draw(small_config):
    """A seed draws the same alone, among other seeds and for every method; a teacher draws differently."""
    config = small_config(num_seeds=3, dataset__examples_per_class=2)
    source = digits.load(config.dataset, config.dataset)
    examples, rows, _ = dispatch.select_examples(source, config)
    assert rows.shape == (3, 10)
    assert base.count(examples) == 30
    for seed in range(3):
        expected = base.take(
            source.train.examples, source.train.rows(randomness.derive_seed('student', seed))
        )
        for alone in (
            small_config(seed=seed, num_seeds=1),
            small_config(method='ld', seed=seed, num_seeds=1),
        ):
            alone.dataset.examples_per_class = 2
            own, own_rows, _ = dispatch.select_examples(source, alone)
            for name, array in expected.items():
                np.testing.assert_array_equal(examples[name][rows[seed]], array)
                np.testing.assert_array_equal(own[name][own_rows[0]], array)
    config.role = 'teacher'
    others = dispatch.select_examples(source, config).examples
    assert not np.array_equal(others['image'], examples['image'])
    # If the seeds draw more than the pool has, the pool is kept once.
    everything = small_config(num_seeds=3, dataset__examples_per_class=80)
    source = digits.load(everything.dataset, everything.dataset)
    examples_of_all_seeds = dispatch.select_examples(source, everything).examples
    assert base.count(examples_of_all_seeds) == base.count(source.train.examples) < 3 * 400


def test_the_number_of_a_seed_is_the_beginning_of_a_digest():
    digest = hashlib.sha256(b'student/4').hexdigest()
    assert randomness.derive_seed('student', 4) == int(digest[:16], 16) >> 1
