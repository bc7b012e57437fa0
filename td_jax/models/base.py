"""A model as the rest of td_jax sees it: three pure functions over one parameter tree.

    lower: inputs -> s    the lower hidden state
    upper: s      -> e    the higher hidden state, which the head reads
    head:  e      -> y    the prediction

Communication reads s and e and runs `upper` by itself, on states that another model suggested, which
is why a model is split and not one function (arXiv 2310.03188, section 3.1).
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
    """What one model computes on the way to its prediction; every array is batch-first."""

    lower: jax.Array  # s: [batch, ..., lower width], laid out as of a Model
    upper: jax.Array  # e: [batch, ..., upper width]
    logits: jax.Array  # y: [batch, outputs]


class Model(NamedTuple):
    """Three functions and their initial parameters.

    A key switches dropout on; with None a function is deterministic.

    init(key, inputs) -> parameter tree
    lower(params, inputs, key) -> s
    upper(params, s, key) -> e
    head(params, e) -> y, [batch, outputs]
    registers: how many tokens stand between the class token and those of the grid

    A state says by its rank what it is, and the lower and the higher one need not be the same:
    [batch, width] is a vector; [batch, tokens, width] a class token, the registers and a grid in row order;
    [batch, rows, columns, width] a feature map, without a class token.
    """

    init: Callable[..., Any]
    lower: Callable[..., jax.Array]
    upper: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    registers: int = 0


def from_module(module: nn.Module, registers: int = 0) -> Model:
    """Makes a Model of a Linen module with methods `lower`, `upper` and `head`.

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

    return Model(init, apply('lower'), apply('upper'), head, registers)


def activations(model: Model, params, inputs, key=None) -> Activations:
    """Runs all three parts on `inputs`; with a key, each part has its own dropout."""
    lower_key, upper_key = (None, None) if key is None else jax.random.split(key)
    s = model.lower(params, inputs, lower_key)
    e = model.upper(params, s, upper_key)
    return Activations(s, e, model.head(params, e))


def read_by_head(e: jax.Array) -> jax.Array:
    """What a prediction reads of a higher hidden state, [batch, width].

    Of tokens the first one, of a feature map the mean, in float32. (A ViT's own head may read more beside it,
    td_jax.models.vit.POOLINGS.)
    """
    if e.ndim == 4:
        return e.mean(axis=(1, 2), dtype=jnp.float32)
    return e[:, 0] if e.ndim == 3 else e


def misfit(params, shapes) -> str | None:
    """The first parameter that is missing on one side or has another shape; None where all fit.

    Args:
      params: a tree of arrays.
      shapes: a tree of what a model has, arrays or their shapes.
    """
    there, wanted = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (params, shapes))
    for name in sorted(there.keys() | wanted.keys()):
        found = [side[name].shape if name in side else None for side in (there, wanted)]
        if found[0] != found[1]:
            says = ['is missing' if shape is None else f'has shape {shape}' for shape in found]
            return f'{name} {says[0]} there and {says[1]} in the model'
    return None


def with_parameters(model: Model, params) -> Model:
    """A model that starts from parameters that it learned elsewhere: its `init` gives them, whatever the key.

    Args:
      model: of the parameters.
      params: a tree of arrays, as `model.init` makes it; else `init` raises a UserError.
    """

    def init(key, inputs):
        wrong = misfit(params, jax.eval_shape(model.init, key, inputs))
        if wrong:
            raise UserError(f'the parameters of a model do not fit it: {wrong}.')
        return params

    return model._replace(init=init)


def started_from(given: dict, initial: dict, copies_head: bool) -> dict:
    """The parameters of a student that starts from its teacher.

    Args:
      given: the teacher's parameters.
      initial: the student's own.
      copies_head: whether both predict the same, so that the head is copied, too.

    Returns:
      A tree like `initial`, in which everything that `given` has under the same name is copied from there.

    Raises:
      UserError: a copy that does not fit; names the parameter and both shapes.
    """
    found = dict(jax.tree_util.tree_leaves_with_path(given))

    def choose(path, own):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        other = found.get(path)
        if other is None or (name.split('/')[0] in HEADS and not copies_head):
            return own
        if other.shape != own.shape:
            raise UserError(
                f'model.initial is teacher, but {name} is {own.shape} in the student and {other.shape} in '
                'the teacher; give both the same sizes, or set model.initial to random.'
            )
        return other

    return jax.tree_util.tree_map_with_path(choose, initial)
