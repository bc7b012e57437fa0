"""The digits: how scikit-learn's 1,797 images are cut for a task."""

import collections

import numpy as np
import pytest
import sklearn.datasets

from td_jax.configs import digits as digits_config
from td_jax.data import digits
from td_jax.errors import UserError

IMAGES, DIGITS = sklearn.datasets.load_digits(return_X_y=True)
# No two images are the same, so an image identifies its row.
ROW_OF = {image.astype(np.float32).tobytes(): row for row, image in enumerate(IMAGES)}


def load(split='test', **task):
    config = digits_config.get_config()
    config.dataset.split, config.dataset.labelled_by = split, 'first'
    config.dataset.update({'classes': (), 'examples_per_class': 0, **task})
    return digits.load(config.dataset, config.dataset)


def find_rows(examples):
    """The rows of scikit-learn's images that the examples are; pixels are 0 to 16 there and 0 to 1 here."""
    return [ROW_OF[(image * 16).astype(np.float32).tobytes()] for image in examples['image']]


def test_training_and_test_are_disjoint_and_all():
    assert len(ROW_OF) == len(IMAGES) == 1797
    source = load()
    train, test = find_rows(source.train), find_rows(source.evaluation)
    assert sorted(train + test) == list(range(1797))
    np.testing.assert_array_equal(source.train['labels'], DIGITS[train])
    np.testing.assert_array_equal(source.evaluation['labels'], DIGITS[test])
    assert source.label_names == tuple('0123456789')


def test_every_class_keeps_its_share():
    counts = np.bincount(DIGITS)
    test, validation = load().evaluation['labels'], load('validation').evaluation['labels']
    np.testing.assert_allclose(np.bincount(test), 0.3 * counts, atol=1)
    np.testing.assert_allclose(np.bincount(validation), 0.15 * counts, atol=1)


def test_the_validation_slice_is_cut_from_training_alone():
    test_run, validation_run = load(), load('validation')
    training_rows, validation_rows = find_rows(validation_run.train), find_rows(validation_run.evaluation)
    assert sorted(training_rows + validation_rows) == sorted(find_rows(test_run.train))
    assert not set(validation_rows) & set(find_rows(test_run.evaluation))


def test_the_cut_is_the_same_for_every_task():
    everything, part = load(), load(classes=(3, 7))
    assert set(find_rows(part.train)) <= set(find_rows(everything.train))
    assert set(find_rows(part.evaluation)) <= set(find_rows(everything.evaluation))


@pytest.mark.parametrize('classes', [(2, 5, 7), (7, 2, 5)])
def test_labels_are_positions_in_the_tasks_classes(classes):
    source = load(classes=classes)
    for examples in (source.train, source.evaluation):
        np.testing.assert_array_equal(np.take(classes, examples['labels']), DIGITS[find_rows(examples)])
        assert set(examples['labels']) == {0, 1, 2}
    assert source.label_names == tuple(map(str, classes))
    assert len(source.evaluation['labels']) == np.isin(DIGITS, classes)[find_rows(load().evaluation)].sum()


def test_examples_per_class_keeps_the_first_of_each_and_all_of_the_evaluation():
    few, everything = load(classes=(1, 4), examples_per_class=3), load(classes=(1, 4))
    assert collections.Counter(few.train['labels'].tolist()) == {0: 3, 1: 3}
    rows = sorted(find_rows(everything.train))
    first = [[row for row in rows if DIGITS[row] == digit][:3] for digit in (1, 4)]
    assert find_rows(few.train) == first[0] + first[1]
    assert find_rows(few.evaluation) == find_rows(everything.evaluation)


def test_inputs_are_the_images_with_and_without_a_key():
    source = load(classes=(1, 4), examples_per_class=2)
    for key in (None, 'a key'):
        inputs = source.inputs(source.tables, source.train, key)
        assert set(inputs) == {'image'}
        np.testing.assert_array_equal(inputs['image'], source.train['image'])
    assert source.train['image'].shape == (4, 64)
    assert source.train['image'].min() == 0
    assert source.train['image'].max() == 1


@pytest.mark.parametrize('classes', [(3, 10), (-1,), (2, 2)])
def test_classes_that_are_no_digits_are_refused(classes):
    with pytest.raises(UserError, match=r'dataset\.classes is \(.*from 0 to 9'):
        load(classes=classes)


def test_more_examples_than_there_are_are_refused():
    # 0.7 of the 174 eights, the rarest digit, are in training.
    assert np.bincount(DIGITS).min() == 174
    with pytest.raises(UserError, match=r'dataset\.examples_per_class is 500; only 12[12] training'):
        load(examples_per_class=500)
