"""Floating-point operations of a program, counted from the shapes of its matrix products and convolutions.

These are counted alone: a step cannot do without them, and they are nearly all that it does. Their number
over a machine's best product rate is therefore a lower bound on the time of a step.
"""

import math
import time

import jax
import jax.numpy as jnp
from jax.extend import core

# Side of the product whose rate is measured.
SIDE = 2048


def of(function, *arguments) -> int:
    """Counts the operations of all products that `function(*arguments)` runs, 2 m k n for [m, k] @ [k, n].

    A convolution has 2 for each number of its output, each place of its kernel and each channel that it sums
    over, those at a padded border included; its gradients likewise, without the zeros between their inputs.
    A while loop counts as one iteration, because shapes do not tell its length; a scan counts all iterations.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def measure_rate(dtype: str, repeats: int = 3) -> float:
    """Measures the operations per second of one large product on this machine, the fastest of some.

    A training step reaches less, so operations divided by it are a lower bound on the time.

    Args:
      dtype: of the product, by name.
      repeats: how often it is timed, after a first time that compiles.
    """
    a = jnp.ones((SIDE, SIDE), dtype)
    multiply = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds[1:])


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name, inner = equation.primitive.name, _inner_programs(equation.params)
    if name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel, rows = equation.invars[1].aval, equation.params['dimension_numbers'].rhs_spec
        summed = kernel.size // kernel.shape[rows[0]]
        return 2 * equation.outvars[0].aval.size * summed // math.prod(equation.params['lhs_dilation'])
    if name == 'cond':
        return max(map(_count, inner))
    count = sum(map(_count, inner))
    return count * equation.params['length'] if name == 'scan' else count


def _inner_programs(params):
    """The programs within an equation's parameters."""
    values = [x for value in params.values() for x in (value if isinstance(value, tuple) else (value,))]
    closed = [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in values]
    return [value for value in closed if isinstance(value, core.Jaxpr)]
