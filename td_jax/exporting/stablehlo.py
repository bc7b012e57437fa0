"""Exports a student of any model as a StableHLO program with its parameters.

`jax.export.deserialize(bytearray(content)).call({name: array})` gives {name: array}, with the inputs and
outputs of td_jax/predicting/program.py, for one example or more and images of any size.
"""

import pathlib

import jax
import jax.export
import numpy as np

from td_jax.predicting.program import Program

# The platforms that a program can run on.
PLATFORMS = ('cpu', 'cuda', 'tpu')
NAME = 'student.stablehlo'


def write(folder: pathlib.Path, program: Program):
    """Writes the program of a student into a folder."""
    (folder / NAME).write_bytes(serialize(program))


def serialize(program: Program) -> bytes:
    """Serializes a program for jax.export.deserialize, for all PLATFORMS."""
    names = {axis for port in program.inputs.values() for axis in port.shape if isinstance(axis, str)}
    axes = ','.join(sorted(names))
    # No axis may be empty, because resizing divides by its length.
    sizes = dict(
        zip(
            sorted(names),
            jax.export.symbolic_shape(axes, constraints=[f'{name} >= 1' for name in names]),
            strict=True,
        )
    )
    inputs = {
        name: jax.ShapeDtypeStruct([sizes.get(axis, axis) for axis in port.shape], np.dtype(port.dtype))
        for name, port in program.inputs.items()
    }
    return bytes(jax.export.export(jax.jit(program.run), platforms=PLATFORMS)(inputs).serialize())
