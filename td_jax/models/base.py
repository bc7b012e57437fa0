"""A model as the rest of td_jax sees it: three pure functions over one parameter tree.

    lower: inputs -> s    the lower hidden state
    upper: s      -> e    the higher hidden state, which the head reads
    head:  e      -> y    the prediction

Communication reads s and e and runs `upper` by itself, on states that another model suggested, which
is why a model is split and not one function (arXiv 2310.03188, section 3.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Activations(NamedTuple):
    """What one model computes on the way to its prediction; every array is batch-first."""

    lower: jax.Array  # s: [batch, ..., lower width]
    upper: jax.Array  # e: [batch, ..., upper width]
    logits: jax.Array  # y: [batch, outputs]


class Model(NamedTuple):
    """Three functions and their initial parameters.

    A key switches dropout on; with None a function is deterministic.

    init(key, inputs) -> parameter tree
    lower(params, inputs, key) -> s
    upper(params, s, key) -> e
    head(params, e) -> y, [batch, outputs]
    """

    init: Callable[..., Any]
    lower: Callable[..., jax.Array]
    upper: Callable[..., jax.Array]
    head: Callable[..., jax.Array]


def from_module(module: nn.Module) -> Model:
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

    return Model(init, apply('lower'), apply('upper'), head)


def activations(model: Model, params, inputs, key=None) -> Activations:
    """Runs all three parts on `inputs`; with a key, each part has its own dropout."""
    lower_key, upper_key = (None, None) if key is None else jax.random.split(key)
    s = model.lower(params, inputs, lower_key)
    e = model.upper(params, s, upper_key)
    return Activations(s, e, model.head(params, e))
