"""Products as exact as their type says, on every device."""

import functools
from collections.abc import Callable

import jax


def exact(function: Callable) -> Callable:
    """Wraps a function so that its products of float32 are computed in float32 on every device.

    By default JAX silently lets a TPU round the factors to bfloat16 and a GPU to TF32. Products of bfloat16,
    and all products on a CPU, stay as they are. Gradients are as exact.
    """

    @functools.wraps(function)
    def run(*arguments, **keywords):
        with jax.default_matmul_precision('highest'):
            return function(*arguments, **keywords)

    return run
