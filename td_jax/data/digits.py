"""Handwritten digits: 1,797 real images of 8x8 pixels that ship with scikit-learn."""

import numpy as np

from td_jax.data.base import (
    Picture,
    Source,
    describe_part,
    find_first_rows,
    make_labelled_pool,
    makes_pool,
    rows_of_part,
)
from td_jax.data.images import too_few_error
from td_jax.data.resizing import View
from td_jax.errors import UserError

CLASSES = tuple(range(10))
# The side of an image in pixels.
SIDE = 8
# Shares of all images: the last cut is the test set, the one before the validation slice.
TEST_SHARE = 0.3
VALIDATION_SHARE = 0.15


def load(config, task) -> Source:
    """Cuts the digits for a task.

    Every class keeps its share in training, validation and test; the cuts do not depend on a seed.
    Inputs: {'image': [batch, 64]}, from 0 to 1; labels: position of the digit in the task's classes.

    Args:
      config: `config.dataset`, for the split and for what draws the training examples of a class.
      task: `config.dataset` or `config.teacher.dataset`, for the classes.

    Raises:
      UserError: classes that are no digits, or more examples of a class than there are.
    """
    classes = tuple(task.classes) or CLASSES
    if not set(classes) <= set(CLASSES) or len(set(classes)) != len(classes):
        raise UserError(f'dataset.classes is {classes}; digits are different numbers from 0 to 9.')
    import sklearn.datasets

    images, digits = sklearn.datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)

    development, test = _split_rows(np.arange(len(digits)), digits, TEST_SHARE)
    train, validation = _split_rows(development, digits, VALIDATION_SHARE / (1 - TEST_SHARE))
    train, evaluation = (train, validation) if config.split == 'validation' else (development, test)

    def rows_of_classes(rows, per_class=None):
        rows = np.sort(rows)
        return np.concatenate([rows[digits[rows] == c][:per_class] for c in classes])

    def make_examples(rows):
        labels = np.array([classes.index(digit) for digit in digits[rows]])
        return {'image': images[rows], 'labels': labels.astype(np.int32)}

    if task.examples_per_class:
        fewest = min(np.sum(digits[train] == c) for c in classes)
        if task.examples_per_class > fewest:
            raise too_few_error(task.examples_per_class, fewest)
    if makes_pool(config, task):
        places = rows_of_classes(train)
        # The examples that a search is evaluated on; the test split trains on them.
        is_held_back = np.isin(places, validation)
        pool, per_class = make_examples(places), task.examples_per_class
        first_rows = find_first_rows(pool['labels'], per_class, config)
        train_examples = make_labelled_pool(pool, per_class, places, is_held_back, first_rows)
    else:
        train_examples = make_examples(rows_of_classes(train, task.examples_per_class or None))
    evaluation_rows = rows_of_classes(evaluation)
    # As bytes, of scikit-learn's numbers from 0 to 16.
    contents = ((16 * images[row]).astype(np.uint8).tobytes() for row in evaluation_rows)
    evaluation_rows = evaluation_rows[rows_of_part(contents, config)]
    return Source(
        name=f'digits {", ".join(map(str, classes))}{describe_part(config)}',
        train=train_examples,
        evaluation=make_examples(evaluation_rows),
        task='classification',
        label_names=tuple(map(str, classes)),
        vocabularies={},
        tables=(),
        inputs=inputs,
        picture=PICTURE,
    )


def inputs(tables, examples, key) -> dict:
    """Source.inputs of digits: the unchanged image."""
    return {'image': examples['image']}


def _inputs_from_pixels(pixels):
    """Makes inputs of pixels of a light digit on black: [batch, 8, 8, 3] -> {'image': [batch, 64]}."""
    return {'image': pixels.mean(axis=-1).reshape(-1, SIDE * SIDE) / 255}


PICTURE = Picture(View(SIDE, 'bilinear_antialias'), False, _inputs_from_pixels)


def _split_rows(rows, digits, share):
    """Splits `rows` in two, the second a `share` of them, with every digit in proportion."""
    import sklearn.model_selection

    return sklearn.model_selection.train_test_split(
        rows, test_size=share, random_state=0, stratify=digits[rows]
    )
