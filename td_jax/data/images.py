"""What image data sets share: how an image is shown to a model, with or without random variation."""

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


# Of an example: what its student is shown, and its teacher where that is shown images otherwise.
IMAGE, TEACHER_IMAGE = 'image', 'teacher_image'


class OfTeacher(NamedTuple):
    """How a teacher is shown the images of its student, where that is not as the student is."""

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
    """Where to crop images at random.

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


def varied(images, view: View, key, min_area: float, mirror_rate: float):
    """A random crop of each image, resized and mirrored by chance, on the device.

    Args:
      images: [batch, height, width, channels].
      view: whose side and resize are those of the result; where images are taken whole, they are shown by it.
      key: jax.random key; the same one crops and mirrors alike for every view.
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
        return _mirrored(resizing.on_device(images, view), mirror)
    start, extent = crop_boxes(box_key, batch, height, width, min_area)
    cut = jax.vmap(lambda *image_and_box: resizing.crop(*image_and_box, view.side, view.resize))
    return _mirrored(cut(images, start, extent), mirror)


def _mirrored(images, mirror):
    """Mirrors the images [batch, h, w, c] where `mirror` [batch] says so."""
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def view_of(config, task) -> View:
    """How a task's model is shown images; what the teacher's task leaves open is as the student's.

    Args:
      config: `config.dataset`.
      task: that, or `config.teacher.dataset`.
    """
    return View(*(task[key] or config[key] for key in ('image_size', 'resize', 'crop_mode', 'crop_pct')))


def training_view(config, task) -> View:
    """How a task's model is shown an image in training that is taken whole: the student's part of it.

    Args:
      config, task: as of view_of.
    """
    own = view_of(config, config)
    return view_of(config, task)._replace(crop_mode=own.crop_mode, crop_pct=own.crop_pct)


def of_teacher(config, task, is_clean: bool) -> OfTeacher | None:
    """How a teacher is shown the images of its student; None where that is as the student is.

    Args:
      config: `config.dataset`.
      task: `config.teacher.dataset`.
      is_clean: whether it is shown training images as in an evaluation.
    """
    view = view_of(config, task)
    if view == view_of(config, config):
        return None
    return OfTeacher(view if is_clean else training_view(config, task), view)


def picture_of(config, task, is_native: bool) -> data.Picture:
    """How an image of any size becomes what a task's model is given in an evaluation.

    Args:
      config, task: as of view_of.
      is_native: as of inputs_of.
    """

    def inputs(pixels):
        return {'image': normalize(pixels, task.image_mean, task.image_std)}

    return data.Picture(view_of(config, task), not is_native, inputs)


def inputs_of(config, task, is_kept: bool, is_native: bool):
    """Makes Source.inputs of an image data set: {'image': [batch, side, side, 3]}, in float32.

    Args:
      config: `config.dataset`, for the random variation, and how its student is shown images.
      task: `config.dataset` or `config.teacher.dataset`, for how its model is shown images.
      is_kept: whether images are in memory, so that varying them is part of a step; else they come varied.
      is_native: whether they are kept as they were taken, so that resizing them is part of a step, too.
    """
    view = view_of(config, task)
    field = IMAGE if is_native or view == view_of(config, config) else TEACHER_IMAGE
    # What is kept resized is shown as it is.
    in_training = training_view(config, task) if is_native else View(view.side, view.resize)

    def inputs(tables, examples, key):
        pixels = examples[field]
        if is_kept and key is not None:
            pixels = varied(pixels, in_training, key, config.min_crop_area, config.mirror_rate)
        elif is_native:
            pixels = resizing.on_device(pixels, view)
        return {'image': normalize(pixels, task.image_mean, task.image_std)}

    return inputs


def is_kept(count: int, sides: Sequence[int], config) -> bool:
    """Whether some images are few and small enough to be kept in memory.

    It depends on the data and on `config.kept_gb`, and not on the machine: what a run computes may.

    Args:
      count: how many there are, of training and evaluation.
      sides: in pixels, as each of them would be kept.
      config: `config.dataset`.

    Raises:
      UserError: they should be, but are larger than this machine.
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


def kept_source(
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
    """A Source of images in memory, cut to the classes of a task.

    Inputs: {'image': [batch, size, size, 3]}, by inputs_of; labels: position of the class in the task's
    classes.

    Args:
      name: what a person calls the data set.
      label_names: of all classes.
      parts: (training, evaluation), {'image': [images, side, side, 3] uint8, 'labels': [images]} each, and
        'teacher_image' where a teacher is shown others.
      config: `config.dataset`, for the random variation, and for who draws the training examples of a class.
      task: `config.dataset` or `config.teacher.dataset`, for the classes and how a model is shown images.
      contents: what each evaluation image is as it is stored, for dataset.test_part; read where that asks.
      held_back: how many of the training images, the last ones, a search is evaluated on.
      is_native: whether they are as they were taken, and not resized to be kept.

    Raises:
      UserError: classes that are not there, or more examples of a class than there are.
    """
    classes = checked_classes(name, label_names, task)
    train, evaluation = parts
    chosen = data.rows_of_part(contents, config)
    evaluation = data.take(evaluation, chosen)
    inputs = functools.partial(inputs_of, config, is_kept=True, is_native=is_native)
    return data.Source(
        name=f'{name} {said_of(label_names, classes)}{data.describe_part(config)}',
        train=_of_seeds(train, label_names, classes, config, task, held_back),
        evaluation=_of_classes(evaluation, label_names, classes)[0],
        task='classification',
        label_names=tuple(label_names[c] for c in classes),
        vocabularies={},
        tables=(),
        inputs=inputs(task),
        inputs_for=inputs,
        picture=picture_of(config, task, is_native),
    )


def checked_classes(name: str, label_names: tuple[str, ...], task) -> tuple[int, ...]:
    """The numbers of a task's classes, in its order.

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


def said_of(label_names: tuple[str, ...], classes: tuple[int, ...]) -> str:
    """Some classes for a person."""
    return ', '.join(label_names[c] for c in classes) if len(classes) <= 10 else f'{len(classes)} classes'


def too_few(wanted: int, there: int) -> UserError:
    """The refusal of dataset.examples_per_class, of which there are too few."""
    return UserError(
        f'dataset.examples_per_class is {wanted}; only {there} training images of a class are there.'
    )


def _of_seeds(examples, label_names, classes, config, task, held_back):
    """What seeds train on: all of some classes, the first of each class, or a pool that each draws from."""
    of_each, is_drawn = task.examples_per_class, config.labelled_by == 'seed'
    if not of_each or not is_drawn:
        return _of_classes(examples, label_names, classes, of_each or None)[0]
    pool, places = _of_classes(examples, label_names, classes)
    fewest = np.bincount(pool['labels'], minlength=len(classes)).min()
    if of_each > fewest:
        raise too_few(of_each, fewest)
    is_held_back = places >= len(examples['labels']) - held_back
    return data.make_labelled_pool(pool, of_each, places, is_held_back)


def _of_classes(examples, label_names, classes, of_each=None):
    """(examples of some classes, the first `of_each` of each, labels their positions; their rows before)"""
    labels = examples['labels']
    if classes == tuple(range(len(label_names))) and not of_each:
        kept = {**examples, 'labels': labels.astype(np.int32)}
        return kept, np.arange(len(labels))
    found = [np.flatnonzero(labels == c) for c in classes]
    if of_each and of_each > min(map(len, found)):
        raise too_few(of_each, min(map(len, found)))
    chosen = np.sort(np.concatenate([rows[:of_each] for rows in found]))
    position = np.zeros(len(label_names), np.int32)
    position[list(classes)] = np.arange(len(classes))
    return {**data.take(examples, chosen), 'labels': position[labels[chosen]]}, chosen


# name -> (classes, training images, side in pixels as they are kept; 0 for the side that a model is shown)
FACTS = {'cifar10': (10, 50_000, 32), 'cifar100': (100, 50_000, 32), 'imagenet': (1000, 1_281_167, 0)}
# Those that are in memory or streamed, by dataset.kept_gb; of these, nothing is known before they are read.
KEPT = 'images', 'tfds'
# All data sets of images.
NAMES = *FACTS, *KEPT


def abstract_source(config, task, beside: OfTeacher | None = None) -> data.Source:
    """A Source of the shapes of an image data set, without its images, for what only counts or compiles.

    Args:
      config: `config.dataset`.
      task: `config.dataset` or `config.teacher.dataset`, for the classes.
      beside: how a teacher is shown the same images, where that is not as the student is.

    Raises:
      UserError: a data set that is not one of images.
    """
    if config.name not in FACTS:
        kind = 'is known when it is read' if config.name in NAMES else 'is no image data set'
        raise UserError(f'dataset.name {config.name} {kind}; known without data: {", ".join(FACTS)}.')
    classes, count, side = FACTS[config.name]
    chosen = tuple(task.classes) or tuple(range(classes))
    if task.examples_per_class or task.classes:
        count = len(chosen) * (task.examples_per_class or count // classes)
    kept = config.name != 'imagenet'
    rows = count if kept else 1
    sides = {IMAGE: side or config.image_size}
    if beside and not kept:
        sides[TEACHER_IMAGE] = beside.training.side
    train = {
        # Strides of zero: as large as the data set, but of no memory.
        **{field: np.broadcast_to(np.zeros((), np.uint8), (rows, n, n, 3)) for field, n in sides.items()},
        'labels': np.zeros(rows, np.int32),
    }
    inputs = functools.partial(inputs_of, config, is_kept=kept, is_native=kept)
    return data.Source(
        name=config.name,
        train=train if kept else data.TrainStream(count, train, None),
        evaluation=train,
        task='classification',
        label_names=tuple(map(str, chosen)),
        vocabularies={},
        tables=(),
        inputs=inputs(task),
        inputs_for=inputs,
    )
