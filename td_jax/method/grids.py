"""States of unlike shapes on one grid: what lies between a model's states and the messages about them.

A state is laid out by its rank:

    [batch, width]                  a vector, which is a grid of one cell
    [batch, tokens, width]          a class token, registers if the model has any, then a grid in row order
    [batch, rows, columns, width]   a feature map: a grid, and no class token

A message has one layout for both models. A grid is resized to it bilinearly, as jax.image.resize does it with
antialiasing: where a grid becomes coarser, every cell of it counts, and not only those beside a sampled
point. A class token goes by itself. A model without one speaks with the mean of its grid in its place, and
hears, in each of its cells, the mean of the cell and of what the other's class token says. Registers go by
themselves between models that have as many; else what a model hears as a class token is what its registers
hear, and its own are not spoken.

Between states of one layout nothing is done at all.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """How an array [batch, *shape, width] is laid out."""

    shape: tuple[int, ...]
    leading: int  # tokens before the grid: 0, or a class token and registers
    grid: tuple[int, int]  # rows, columns


def layout_of(state: jax.Array, registers: int = 0) -> Layout:
    """The layout of a state; tokens that are no square make a grid of one row.

    Args:
      state: [batch, width], [batch, tokens, width] or [batch, rows, columns, width].
      registers: tokens between the class token and the grid.

    Raises:
      ValueError: another rank.
    """
    shape = state.shape[1:-1]
    if not shape:
        return Layout(shape, 0, (1, 1))
    if len(shape) == 2:
        return Layout(shape, 0, shape)
    if len(shape) > 2:
        raise ValueError(f'A state has 2 to 4 axes, not the {state.ndim} of {state.shape}.')
    # A single token is what a head reads of a whole example.
    leading = 1 + registers if shape[0] > 1 + registers else 0
    count = shape[0] - leading
    side = math.isqrt(count)
    return Layout(shape, leading, (side, side) if side * side == count else (1, count))


def layout_of_message(student: tuple[Layout, ...], teacher: tuple[Layout, ...], side: str) -> Layout:
    """The layout of the messages between two models.

    Args:
      student, teacher: the layouts of the lower and the higher state of each.
      side: communication.grid: 'student' or 'teacher', whose lower state then gives the grid, or a number of
        rows and columns, in digits.
    """
    lower = {'student': student[0], 'teacher': teacher[0]}.get(side)
    leading = {layout.leading for layout in (*student, *teacher)}
    if lower and {*student, *teacher} == {lower}:
        return lower
    count = leading.pop() if len(leading) == 1 else 1
    rows, columns = lower.grid if lower else (int(side), int(side))
    return Layout((count + rows * columns,) if count else (rows, columns), count, (rows, columns))


def fit(x: jax.Array, source: Layout, target: Layout) -> jax.Array:
    """Lays an array out anew: [batch, *source.shape, width] -> [batch, *target.shape, width]."""
    if source == target:
        return x
    batch, width = x.shape[0], x.shape[-1]
    tokens = x.reshape(batch, -1, width)
    leading, cells = tokens[:, : source.leading], tokens[:, source.leading :]
    mean = cells.mean(axis=1, keepdims=True)
    if source.grid != target.grid:
        grid = cells.reshape(batch, *source.grid, width)
        grid = jax.image.resize(grid, (batch, *target.grid, width), 'bilinear', antialias=True)
        cells = grid.reshape(batch, -1, width)
    if source.leading != target.leading:
        token = leading[:, :1] if source.leading else mean
        if target.leading:
            leading = jnp.broadcast_to(token, (batch, target.leading, width))
        else:
            leading, cells = leading[:, :0], (cells + token) / 2
    return jnp.concatenate([leading, cells], axis=1).reshape(batch, *target.shape, width)
