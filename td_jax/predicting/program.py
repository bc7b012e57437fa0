"""A student as a function of what a person has: ids, or images of any size.

Everything between that and a prediction is inside: tables of what belongs to an id, the resizing and the
normalisation of an image, the parameters. So who runs it needs neither td_jax nor the data set.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.data import base as data
from td_jax.data import decoding, resizing
from td_jax.models import base

# The name of an axis with as many rows as there are examples, and those of an image of any size.
BATCH, HEIGHT, WIDTH = 'batch', 'height', 'width'
IMAGE = 'image'
# The number of an id that has none.
UNKNOWN = -1


class Port(NamedTuple):
    """What a program takes or gives under one name."""

    dtype: str
    shape: tuple[int | str, ...]  # a name where any size is taken
    meaning: str  # for a person


class Program(NamedTuple):
    """A student with its parameters.

    run({name: array, as inputs say}) -> {name: array, as outputs say}; pure
    of_pixels([batch, side, side, 3] float32, as the view of `picture` shows them) -> the same; None where no
      image is taken
    """

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    labels: tuple[str, ...]
    run: Callable[[dict], dict]
    # {name of an input: its ids, in order of their numbers}
    vocabularies: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})
    picture: data.Picture | None = None
    of_pixels: Callable[[jax.Array], dict] | None = None


def of_student(model: base.Model, params, source: data.Source) -> Program:
    """The program of a student.

    Args:
      model: what computes.
      params: its parameters.
      source: its data, which says what an example is made of. Where it says nothing of ids or images, the
        program takes what the model is given.
    """
    constants = jax.tree.map(np.asarray, params)
    tables = jax.tree.map(np.asarray, source.tables)
    outputs, predicted = _predictions(source)

    def of_inputs(inputs):
        return predicted(base.activations(model, constants, inputs).logits)

    def of_examples(examples):
        return of_inputs(source.inputs(tables, examples, None))

    labels = tuple(map(str, source.label_names))
    if source.ids:
        ports, run, vocabularies = _of_ids(source, of_examples)
        return Program(ports, outputs, labels, run, vocabularies)
    picture = source.picture
    if picture is None:
        shapes = jax.eval_shape(lambda: source.inputs(tables, data.one_example(source), None))
        ports = {
            name: Port(str(leaf.dtype), (BATCH, *leaf.shape[1:]), 'what the model is given in an evaluation')
            for name, leaf in shapes.items()
        }
        return Program(ports, outputs, labels, of_inputs)

    def of_pixels(pixels):
        return of_inputs(picture.inputs(pixels))

    def of_images(inputs):
        return of_pixels(resized(inputs[IMAGE], picture))

    port = Port(
        'uint8',
        (BATCH, HEIGHT, WIDTH, 3),
        f'red, green and blue of images of any size, each from 0 to 255; of a file {decoding.RULE}; '
        f'inside, {picture.view.describe()}',
    )
    return Program({IMAGE: port}, outputs, labels, of_images, picture=picture, of_pixels=of_pixels)


def numbers_of(ids: data.Ids, raw) -> np.ndarray:
    """The number of each of some raw ids, int32; UNKNOWN where it has none."""
    numbers = {text: number for number, text in enumerate(ids.raw.tolist())}
    return np.array([numbers.get(text, UNKNOWN) for text in raw], np.int32)


def _of_ids(source, of_examples):
    """(ports, run, vocabularies) of a Program that takes numbers of ids."""

    def run(inputs):
        examples = {}
        for field, ids in source.ids.items():
            number, count = inputs[ids.column], len(ids.raw)
            examples[field] = jnp.where((number >= 0) & (number < count), number, count)
        return of_examples(examples)

    ports = {
        ids.column: Port(
            'int32',
            (BATCH,),
            f'numbers that vocabulary.json has for each {ids.column}; {UNKNOWN} for any other',
        )
        for ids in source.ids.values()
    }
    return ports, run, {ids.column: tuple(ids.raw.tolist()) for ids in source.ids.values()}


def resized(pixels, picture: data.Picture):
    """Images [batch, height, width, 3] of any size -> [batch, side, side, 3], float32 from 0 to 255."""
    pixels = resizing.resize_on_device(pixels, picture.view).astype(jnp.float32)
    return jnp.floor(pixels + 0.5) if picture.is_rounded else pixels


def _predictions(source):
    """({name: Port}, the function that makes them of logits [batch, outputs])."""
    count = len(source.label_names)
    if source.task == 'regression':
        (name,) = source.label_names
        port = Port('float32', (BATCH,), f'{name}, in the unit that {source.name} has it in; not clipped')
        return {name: port}, lambda logits: {name: logits[:, 0]}
    outputs = {
        'logits': Port('float32', (BATCH, count), 'one for each of labels, in their order'),
        'probabilities': Port('float32', (BATCH, count), 'the softmax of logits; adds up to 1'),
    }
    return outputs, lambda logits: {'logits': logits, 'probabilities': jax.nn.softmax(logits)}
