"""Shared code of image data sets: the inputs of a model, with or without random variation."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data import base as data
from td_jax.data import resizing
from td_jax.data.resizing import View
from td_jax.devices import memory
from td_jax.errors import UserError

# The aspect ratio of a random crop, width over height, is drawn from this range (Szegedy et al. 2014).
ASPECT_RATIOS = 3 / 4, 4 / 3


# Fields of an example: the image of the student, and that of the teacher if it has views of its own.
IMAGE, TEACHER_IMAGE = 'image', data.TEACHER_IMAGE


class TeacherViews(NamedTuple):
    """How a teacher is shown the images of its student, if other than the student is."""

    training: View
    evaluation: View


def normalize(images, mean, std):
    """(pixel / 255 - mean) / std.

    Args:
      images: [..., 3], from 0 to 255.
      mean, std: of red, green and blue, three numbers each.

    Returns:
      [..., 3] in float32; from -1 to 1 where all of both are a half
    """
    shape = (1,) * (images.ndim - 1) + (3,)
    mean, std = (np.asarray(values, np.float64).reshape(shape) for values in (mean, std))
    return images.astype(jnp.float32) / np.float32(255 * std) - np.float32(mean / std)


def crop_boxes(key, batch: int, height: int, width: int, min_area: float):
    """Draws where to crop images.

    A crop has a share of the area from min_area to 1, all equally likely, and an aspect ratio from
    ASPECT_RATIOS, equally likely on a log scale; where it would reach over the image it is cut to fit.

    Returns:
      (start, size): [batch, 2] each, y and x of the upper left corner, height and width, in pixels and
      fractions of them.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (batch,), jnp.float32, min_area) * height * width
    low, high = map(math.log, ASPECT_RATIOS)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (batch,), jnp.float32, low, high))
    size = jnp.stack(
        [jnp.minimum(jnp.sqrt(area / ratio), height), jnp.minimum(jnp.sqrt(area * ratio), width)], axis=1
    )
    place = jax.random.uniform(place_key, (batch, 2), jnp.float32)
    return place * (jnp.array([[height, width]], jnp.float32) - size), size


def vary(images, view: View, key, min_area: float, mirror_rate: float):
    """Crops each image at random, resizes it and mirrors it by chance, on the device.

    Args:
      images: [batch, height, width, channels].
      view: gives side and resize of the result; images that are taken whole are shown by it.
      key: jax.random key; one key gives the same crops and mirrors for every view.
      min_area: smallest share of the area, of crop_boxes; 1 takes images whole.
      mirror_rate: chance to be mirrored.

    Returns:
      [batch, side, side, channels], float32 with the values of `images`.
    """
    batch, height, width, _ = images.shape
    box_key, mirror_key = jax.random.split(key)
    mirror = jax.random.bernoulli(mirror_key, np.float32(mirror_rate), (batch,))
    images = images.astype(jnp.float32)
    if min_area >= 1:
        return _mirror(resizing.resize_on_device(images, view), mirror)
    start, extent = crop_boxes(box_key, batch, height, width, min_area)
    crop_and_resize = jax.vmap(lambda *image_and_box: resizing.crop(*image_and_box, view.side, view.resize))
    return _mirror(crop_and_resize(images, start, extent), mirror)


def _mirror(images, mirror):
    """Mirrors the images [batch, h, w, c] where `mirror` [batch] says so."""
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def view_of(config, task) -> View:
    """The view of a task's model in evaluation; what the teacher's task leaves open is as the student's.

    Args:
      config: `config.dataset`.
      task: that, or `config.teacher.dataset`.
    """
    return View(*(task[key] or config[key] for key in ('image_size', 'resize', 'crop_mode', 'crop_pct')))


def training_view(config, task) -> View:
    """The view of a task's model in training, for an image that is taken whole: cropped as the student's.

    Args:
      config, task: as of view_of.
    """
    student_view = view_of(config, config)
    return view_of(config, task)._replace(crop_mode=student_view.crop_mode, crop_pct=student_view.crop_pct)


def make_teacher_views(config, task, is_clean: bool) -> TeacherViews | None:
    """Makes the views of a teacher; None where they are the student's.

    Args:
      config: `config.dataset`.
      task: `config.teacher.dataset`.
      is_clean: whether it is shown training images as in an evaluation.
    """
    view = view_of(config, task)
    if view == view_of(config, config):
        return None
    return TeacherViews(view if is_clean else training_view(config, task), view)


def picture_of(config, task, is_native: bool) -> data.Picture:
    """Makes the preprocessing of images of any size for a task's model, as in an evaluation.

    Args:
      config, task: as of view_of.
      is_native: as of inputs_of.
    """

    def inputs(pixels):
        return {'image': normalize(pixels, task.image_mean, task.image_std)}

    return data.Picture(view_of(config, task), not is_native, inputs)


def inputs_of(config, task, is_in_memory: bool, is_native: bool):
    """Makes Source.inputs of an image data set: {'image': [batch, side, side, 3]}, in float32.

    Args:
      config: `config.dataset`, for the random variation, and how its student is shown images.
      task: `config.dataset` or `config.teacher.dataset`, for how its model is shown images.
      is_in_memory: whether images are in memory, so that a step varies them; else they come varied.
      is_native: whether they have their original size, so that a step resizes them, too.
    """
    view = view_of(config, task)
    field = IMAGE if is_native or view == view_of(config, config) else TEACHER_IMAGE
    # Images that are kept resized are not resized again.
    train_view = training_view(config, task) if is_native else View(view.side, view.resize)

    def inputs(tables, examples, key):
        pixels = examples[field]
        if is_in_memory and key is not None:
            pixels = vary(pixels, train_view, key, config.min_crop_area, config.mirror_rate)
        elif is_native:
            pixels = resizing.resize_on_device(pixels, view)
        return {'image': normalize(pixels, task.image_mean, task.image_std)}

    return inputs


def make_fields(config, task, is_in_memory: bool, is_native: bool) -> dict:
    """The fields of a Source that depend on the preprocessing alone; arguments as of inputs_of."""
    inputs = functools.partial(inputs_of, config, is_in_memory=is_in_memory, is_native=is_native)
    return {
        'task': 'classification',
        'vocabularies': {},
        'tables': (),
        'inputs': inputs(task),
        'inputs_for': inputs,
        'picture': picture_of(config, task, is_native),
    }


def fits_in_memory(count: int, sides: Sequence[int], config) -> bool:
    """Whether images are few and small enough to be kept in memory.

    The answer depends on the data and on `config.kept_gb`, not on the machine, because results depend on it.

    Args:
      count: number of images, of training and evaluation.
      sides: in pixels, one for each size in which an image would be kept.
      config: `config.dataset`.

    Raises:
      UserError: they should be kept, but take more than this machine's memory.
    """
    size = 3 * count * sum(side * side for side in sides)
    if size / 1e9 > config.kept_gb:
        return False
    if size > memory.of_machine():
        raise UserError(
            f'dataset.kept_gb is {config.kept_gb} and the images take {size / 1e9:,.1f} GB, but this machine '
            f'has {memory.of_machine() / 1e9:,.1f} GB of memory: lower dataset.kept_gb, which streams them.'
        )
    return True


def source_in_memory(
    name: str,
    label_names: tuple[str, ...],
    parts,
    config,
    task,
    *,
    contents: Iterable[bytes],
    held_back: int,
    is_native: bool = True,
) -> data.Source:
    """Makes a Source of images in memory, cut to the classes of a task.

    Inputs: {'image': [batch, size, size, 3]}, by inputs_of; labels: position of the class in the task's
    classes.

    Args:
      name: what a person calls the data set.
      label_names: of all classes.
      parts: (training, evaluation), {'image': [images, side, side, 3] uint8, 'labels': [images]} each, and
        'teacher_image' where a teacher is shown others.
      config: `config.dataset`, for the random variation, and for what draws the training examples of a class.
      task: `config.dataset` or `config.teacher.dataset`, for the classes and how a model is shown images.
      contents: the stored bytes of each evaluation image; read only where dataset.test_part needs them.
      held_back: number of training images, the last ones, that a search is evaluated on.
      is_native: whether images have their original size.

    Raises:
      UserError: classes that are not there, or more examples of a class than there are.
    """
    classes = resolve_classes(name, label_names, task)
    train, evaluation = parts
    rows = data.rows_of_part(contents, config)
    evaluation = data.take(evaluation, rows)
    return data.Source(
        name=f'{name} {describe_classes(label_names, classes)}{data.describe_part(config)}',
        train=_select_train_examples(train, label_names, classes, config, task, held_back),
        evaluation=_select_classes(evaluation, label_names, classes)[0],
        label_names=tuple(label_names[c] for c in classes),
        **make_fields(config, task, is_in_memory=True, is_native=is_native),
    )


def resolve_classes(name: str, label_names: tuple[str, ...], task) -> tuple[int, ...]:
    """Returns the numbers of a task's classes, in its order, and refuses wrong ones.

    Args:
      name: what a person calls the data set.
      label_names: of all classes.
      task: `config.dataset` or `config.teacher.dataset`.

    Raises:
      UserError: they are not there, or one is there twice.
    """
    classes = tuple(task.classes) or tuple(range(len(label_names)))
    if not set(classes) <= set(range(len(label_names))) or len(set(classes)) != len(classes):
        raise UserError(
            f'dataset.classes is {classes}; {name} has different numbers from 0 to {len(label_names) - 1}.'
        )
    return classes


def describe_classes(label_names: tuple[str, ...], classes: tuple[int, ...]) -> str:
    """Names a few classes, and counts more than ten."""
    return ', '.join(label_names[c] for c in classes) if len(classes) <= 10 else f'{len(classes)} classes'


def too_few_error(requested: int, available: int) -> UserError:
    """The refusal of a dataset.examples_per_class that is larger than the smallest class."""
    return UserError(
        f'dataset.examples_per_class is {requested}; only {available} training images of a class are there.'
    )


def _select_train_examples(examples, label_names, classes, config, task, held_back):
    """Selects training examples: all of some classes, the first of each, or a pool for seeds to draw from."""
    per_class = task.examples_per_class
    if not data.makes_pool(config, task):
        return _select_classes(examples, label_names, classes, per_class or None)[0]
    pool, places = _select_classes(examples, label_names, classes)
    fewest = np.bincount(pool['labels'], minlength=len(classes)).min()
    if per_class > fewest:
        raise too_few_error(per_class, fewest)
    is_held_back = places >= len(examples['labels']) - held_back
    first_rows = data.find_first_rows(pool['labels'], per_class, config)
    return data.make_labelled_pool(pool, per_class, places, is_held_back, first_rows)


def _select_classes(examples, label_names, classes, per_class=None):
    """Selects the first `per_class` examples of some classes: (examples, labels as positions; their rows)."""
    labels = examples['labels']
    if classes == tuple(range(len(label_names))) and not per_class:
        all_examples = {**examples, 'labels': labels.astype(np.int32)}
        return all_examples, np.arange(len(labels))
    rows_by_class = [np.flatnonzero(labels == c) for c in classes]
    if per_class and per_class > min(map(len, rows_by_class)):
        raise too_few_error(per_class, min(map(len, rows_by_class)))
    selected_rows = np.sort(np.concatenate([rows[:per_class] for rows in rows_by_class]))
    position = np.zeros(len(label_names), np.int32)
    position[list(classes)] = np.arange(len(classes))
    return {**data.take(examples, selected_rows), 'labels': position[labels[selected_rows]]}, selected_rows


# name -> (classes, training images, side of a kept image in pixels; 0 for the side that a model is shown)
KNOWN_SIZES = {'cifar10': (10, 50_000, 32), 'cifar100': (100, 50_000, 32), 'imagenet': (1000, 1_281_167, 0)}
# Data sets in memory or streamed, by dataset.kept_gb; their sizes are known only when they are read.
MEMORY_OR_STREAM = 'images', 'tfds'
# All data sets of images.
NAMES = *KNOWN_SIZES, *MEMORY_OR_STREAM


def abstract_source(config, task, teacher_views: TeacherViews | None = None) -> data.Source:
    """Makes a Source with the shapes of an image data set but no images, to count or compile only.

    Args:
      config: `config.dataset`.
      task: `config.dataset` or `config.teacher.dataset`, for the classes.
      teacher_views: how a teacher is shown the same images, if other than its student.

    Raises:
      UserError: a data set that is not one of images, or a number of examples without labels that is known
        only when they are read.
    """
    if config.name not in KNOWN_SIZES:
        kind = 'is known when it is read' if config.name in NAMES else 'is no image data set'
        raise UserError(f'dataset.name {config.name} {kind}; known without data: {", ".join(KNOWN_SIZES)}.')
    classes, count, side = KNOWN_SIZES[config.name]
    class_numbers = tuple(task.classes) or tuple(range(classes))
    if task.examples_per_class or task.classes:
        count = len(class_numbers) * (task.examples_per_class or count // classes)
    is_in_memory = config.name != 'imagenet'
    rows = count if is_in_memory else 1
    sides = {IMAGE: side or config.image_size}
    if teacher_views and not is_in_memory:
        sides[TEACHER_IMAGE] = teacher_views.training.side
    train = {
        # Strides of zero: the shape of the data set without its memory.
        **{field: np.broadcast_to(np.zeros((), np.uint8), (rows, n, n, 3)) for field, n in sides.items()},
        'labels': np.zeros(rows, np.int32),
    }
    return data.Source(
        name=config.name,
        train=train if is_in_memory else data.TrainStream(count, train, None),
        evaluation=train,
        label_names=tuple(map(str, class_numbers)),
        **make_fields(config, task, is_in_memory, is_native=is_in_memory),
        unlabelled=_abstract_unlabelled(config, task, count) if task.get('unlabelled', '') else None,
    )


def _abstract_unlabelled(config, task, num_labelled):
    """Examples without labels of `abstract_source`, all zeros."""
    classes, count, side = KNOWN_SIZES[config.name]
    left = len(tuple(task.classes) or range(classes)) * (count // classes) - num_labelled
    if not side or not data.is_of_training(task.unlabelled) or not left:
        raise UserError(
            f'dataset.unlabelled is {task.unlabelled}, whose number of examples is known when they are read.'
        )
    num_unlabelled = data.read_count(task.unlabelled, left)
    pixels = np.broadcast_to(np.zeros((), np.uint8), (num_unlabelled, side, side, 3))
    return data.Unlabelled(num_unlabelled, {IMAGE: pixels})
