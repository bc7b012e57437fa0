"""A model as the rest of td_jax sees it: three pure functions over one parameter tree.

    lower: inputs -> s    the lower hidden state
    upper: s      -> e    the higher hidden state, which the head reads
    head:  e      -> y    the prediction

A model is split because communication reads s and e, and runs `upper` alone on states that another model
suggested (arXiv 2310.03188, section 3.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from td_jax.errors import UserError

# The parameters of every model's prediction layer, by name; what comes before depends on no labels.
HEADS = 'head_layer', 'output_layer'


class Activations(NamedTuple):
    """The hidden states and the prediction of one model; every array is batch-first."""

    lower: jax.Array  # s: [batch, ..., lower width], with the axes that Model describes
    upper: jax.Array  # e: [batch, ..., upper width]
    logits: jax.Array  # y: [batch, outputs]


class Model(NamedTuple):
    """Three functions and their initial parameters.

    With a key, a function applies dropout; with None it is deterministic.

    init(key, inputs) -> parameter tree
    lower(params, inputs, key) -> s
    upper(params, s, key) -> e
    head(params, e) -> y, [batch, outputs]
    registers: number of tokens between the class token and the grid

    The rank of a state determines its kind, which may differ between the lower and the higher state:
    [batch, width] is a vector; [batch, tokens, width] a class token, the registers and a grid in row order;
    [batch, rows, columns, width] a feature map without a class token.
    """

    init: Callable[..., Any]
    lower: Callable[..., jax.Array]
    upper: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    registers: int = 0


def from_module(module: nn.Module, registers: int = 0) -> Model:
    """Makes a Model from a Linen module with the methods `lower`, `upper` and `head`.

    The module's `lower` and `upper` take (x, deterministic), and its `__call__` runs all three.
    """

    def init(key, inputs):
        return module.init(key, inputs)['params']

    def apply(method):
        def run(params, x, key=None):
            rngs = {} if key is None else {'dropout': key}
            return module.apply({'params': params}, x, key is None, method=method, rngs=rngs)

        return run

    def head(params, e):
        return module.apply({'params': params}, e, method='head')

    return Model(init=init, lower=apply('lower'), upper=apply('upper'), head=head, registers=registers)


def activations(model: Model, params, inputs, key=None) -> Activations:
    """Runs all three parts on `inputs`; with a key, `lower` and `upper` each have their own dropout."""
    lower_key, upper_key = (None, None) if key is None else jax.random.split(key)
    s = model.lower(params, inputs, lower_key)
    e = model.upper(params, s, upper_key)
    return Activations(s, e, model.head(params, e))


def read_by_head(e: jax.Array) -> jax.Array:
    """The part of a higher hidden state that a prediction reads, [batch, width].

    It is the first token, or the mean of a feature map in float32. (A ViT's own head may read more,
    td_jax.models.vit.POOLINGS.)
    """
    if e.ndim == 4:
        return e.mean(axis=(1, 2), dtype=jnp.float32)
    return e[:, 0] if e.ndim == 3 else e


def describe_misfit(params, shapes) -> str | None:
    """Describes the first parameter that is missing or has another shape; None where all fit.

    Args:
      params: a tree of arrays.
      shapes: the model's own tree, of arrays or shapes.
    """
    actual, expected = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (params, shapes))
    for name in sorted(actual.keys() | expected.keys()):
        leaf_shapes = [side[name].shape if name in side else None for side in (actual, expected)]
        if leaf_shapes[0] != leaf_shapes[1]:
            problems = ['is missing' if shape is None else f'has shape {shape}' for shape in leaf_shapes]
            return f'{name} {problems[0]} there and {problems[1]} in the model'
    return None


def with_parameters(model: Model, params) -> Model:
    """A model whose `init` returns given parameters, whatever the key.

    Args:
      model: the model of these parameters.
      params: a tree of arrays like that of `model.init`; for any other tree, `init` raises a UserError.
    """

    def init(key, inputs):
        problem = describe_misfit(params, jax.eval_shape(model.init, key, inputs))
        if problem:
            raise UserError(f'the parameters of a model do not fit it: {problem}.')
        return params

    return model._replace(init=init)


def start_from_teacher(teacher_params: dict, initial: dict, copies_head: bool) -> dict:
    """Copies a teacher's parameters into a student, wherever both have the same name.

    Args:
      teacher_params: the teacher's parameters.
      initial: the student's own.
      copies_head: whether to copy the head, too, because both predict the same labels.

    Returns:
      A tree like `initial`.

    Raises:
      UserError: a parameter has another shape in the teacher.
    """
    teacher_leaves = dict(jax.tree_util.tree_leaves_with_path(teacher_params))

    def choose(path, own):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        teacher_leaf = teacher_leaves.get(path)
        if teacher_leaf is None or (name.split('/')[0] in HEADS and not copies_head):
            return own
        if teacher_leaf.shape != own.shape:
            raise UserError(
                f'model.initial is teacher, but {name} is {own.shape} in the student and '
                f'{teacher_leaf.shape} in the teacher; give both the same sizes, or set model.initial to '
                'random.'
            )
        return teacher_leaf

    return jax.tree_util.tree_map_with_path(choose, initial)
