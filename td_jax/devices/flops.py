"""Floating-point operations of a program, counted from the shapes of its matrix products.

Products alone: they are what a step cannot do without, and nearly all that it does. So the time that a
machine's best product rate needs for them is a floor under the time of a step.
"""

import math

import jax
from jax.extend import core


def of(function, *arguments) -> int:
    """Operations of all products that `function(*arguments)` runs, 2 m k n for [m, k] @ [k, n].

    A while loop, whose length the shapes do not say, counts as one turn; a scan counts all of its turns.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, inner = equation.primitive.name, _inner(equation.params)
    if name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == 'cond':
        return max(map(_count, inner))
    count = sum(map(_count, inner))
    return count * equation.params['length'] if name == 'scan' else count


def _inner(params):
    """The programs within an equation's parameters."""
    values = [x for value in params.values() for x in (value if isinstance(value, tuple) else (value,))]
    closed = [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in values]
    return [value for value in closed if isinstance(value, core.Jaxpr)]
