"""Options for the compiler of a program."""

import os

from jax.sharding import Mesh

LEVEL = 'xla_backend_optimization_level'


def options_of_one_call(mesh: Mesh) -> dict[str, int]:
    """Options for a program that is called once, such as that of a run's first parameters.

    On a CPU to optimise its random numbers takes longer than all the rest, and gives the same ones.
    A level that XLA_FLAGS names stands.
    """
    is_cpu = mesh.devices.flat[0].platform == 'cpu'
    return {LEVEL: 1} if is_cpu and LEVEL not in os.environ.get('XLA_FLAGS', '') else {}
