"""A student as a StableHLO program with its parameters in it, for any model.

`jax.export.deserialize(bytearray(content)).call({name: array})` gives {name: array} of what the program of
td_jax/predicting/program.py takes and gives, any number of examples from one on and images of any size.
"""

import pathlib

import jax
import jax.export
import numpy as np

from td_jax.predicting.program import Program

# Where a program runs.
PLATFORMS = ('cpu', 'cuda', 'tpu')
NAME = 'student.stablehlo'


def write(folder: pathlib.Path, program: Program):
    """Writes the program of a student into a folder."""
    (folder / NAME).write_bytes(serialized(program))


def serialized(program: Program) -> bytes:
    """What jax.export.deserialize reads; runs on all PLATFORMS."""
    names = {axis for port in program.inputs.values() for axis in port.shape if isinstance(axis, str)}
    axes = ','.join(sorted(names))
    # No axis is empty: a resize divides by their length.
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
