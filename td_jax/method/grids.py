"""Resizes states of unlike shapes to one grid, between a model's states and its messages.

The layout of a state follows from its rank:

    [batch, width]                  a vector, which is a grid of one cell
    [batch, tokens, width]          a class token, registers if the model has any, then a grid in row order
    [batch, rows, columns, width]   a feature map: a grid, and no class token

Messages have one layout for both models.

- Grids are resized to it bilinearly, by jax.image.resize with antialiasing, so that every cell of a finer
  grid counts.
- A class token is sent as it is. A model without one sends the mean of its grid instead. When it decodes a
  message with a class token, each of its cells is the mean of the cell and of that token.
- Registers are sent as they are between models with equally many. Otherwise they are not sent, and each
  register of a decoded state is its class token.

States of the same layout are not changed.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """The layout of an array [batch, *shape, width]."""

    shape: tuple[int, ...]
    leading: int  # tokens before the grid: 0, or a class token and registers
    grid: tuple[int, int]  # rows, columns


def layout_of(state: jax.Array, registers: int = 0) -> Layout:
    """The layout of a state; tokens that do not form a square are a grid of one row.

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
    # A single token is a vector for the whole example, without a class token.
    leading = 1 + registers if shape[0] > 1 + registers else 0
    count = shape[0] - leading
    side = math.isqrt(count)
    return Layout(shape, leading, (side, side) if side * side == count else (1, count))


def layout_of_message(student: tuple[Layout, ...], teacher: tuple[Layout, ...], side: str) -> Layout:
    """The layout of the messages between two models.

    Args:
      student, teacher: the layouts of the lower and the higher state of each.
      side: communication.grid: 'student' or 'teacher', for the grid of its lower state, or a number of rows
        and columns, in digits.
    """
    lower = {'student': student[0], 'teacher': teacher[0]}.get(side)
    leading = {layout.leading for layout in (*student, *teacher)}
    if lower and {*student, *teacher} == {lower}:
        return lower
    count = leading.pop() if len(leading) == 1 else 1
    rows, columns = lower.grid if lower else (int(side), int(side))
    return Layout((count + rows * columns,) if count else (rows, columns), count, (rows, columns))


def change_layout(x: jax.Array, source: Layout, target: Layout) -> jax.Array:
    """Changes an array's layout: [batch, *source.shape, width] -> [batch, *target.shape, width]."""
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
