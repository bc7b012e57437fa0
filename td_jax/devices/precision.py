"""Products as exact as their type says, on every device."""

import functools
from collections.abc import Callable

import jax


def exact(function: Callable) -> Callable:
    """A function whose products of float32 are float32 products wherever they are computed.

    By default JAX lets a TPU round the factors to bfloat16 and a GPU to TF32, without a word. Products of
    bfloat16 are what they are and cost what they did, and so are all on a CPU. Gradients are as exact.
    """

    @functools.wraps(function)
    def run(*arguments, **named):
        with jax.default_matmul_precision('highest'):
            return function(*arguments, **named)

    return run
