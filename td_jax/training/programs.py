"""A cache of traced and compiled steps, shared by the runs of one process.

Tracing a step and looking up its program takes as long as hundreds of steps of a small model. Most runs of a
table or a search differ only in the arguments of a compiled step: data of the same shapes, seeds, parameters
of the teacher, weights and rates.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from td_jax import config as config_lib
from td_jax.data import base as data
from td_jax.method import objectives
from td_jax.training import optimizer

# The size of the cache. Hundreds of programs would fill the memory.
MOST = 32
# The memory mappings of a Linux process, one per line, and their limit. A compiled CPU program takes
# thousands; a process at the limit cannot compile, and dies.
MAPPINGS = pathlib.Path('/proc/self/maps')
MOST_MAPPINGS = pathlib.Path('/proc/sys/vm/max_map_count')
# Options that are no part of a program: those of random keys, and the source of the teacher's parameters.
NOT_IN_PROGRAM = 'role', 'protocol', 'seed', 'seed_step', 'teacher.seed', 'teacher.checkpoint'


class Programs:
    """A cache of the results of `make`, one per program."""

    def __init__(self):
        self._made = {}

    def get_or_make(
        self, config, source: data.Source, teacher_source: data.Source | None, mesh, make: Callable
    ) -> Any:
        """The result of `make`, called for the first run with the same program.

        Args:
          config: of the run, checked.
          source: the student's data.
          teacher_source: the data of its teacher, or None.
          mesh: the devices, by sharding.make_mesh.
          make: takes no arguments; an exception is not cached.
        """
        key = (
            describe_program(config),
            _describe_shapes(source),
            teacher_source and _describe_shapes(teacher_source),
            mesh,
        )
        if key not in self._made:
            if len(self._made) == MOST or _mappings_run_short():
                self._made.clear()
                # JAX keeps compiled programs longer than their functions.
                jax.clear_caches()
            self._made[key] = make()
        return self._made[key]


def _mappings_run_short() -> bool:
    """Whether half of the mappings are in use; the other half is for the next program.

    False on a system without such a limit.
    """
    try:
        return 2 * MAPPINGS.read_bytes().count(b'\n') > int(MOST_MAPPINGS.read_text())
    except (OSError, ValueError):
        return False


def describe_program(config) -> str:
    """The options of a run that its program depends on; of a hyperparameter, only whether it is 0."""
    knobs = config_lib.flatten(config)
    for name in {*NOT_IN_PROGRAM, *config_lib.explain_without_effect(config, knobs)}:
        del knobs[name]
    # As in train_step.read_hyperparameters.
    numbers = [f'{config.method}.weights.{term}' for term in objectives.weights_of(config)]
    for name in (*numbers, 'optimizer.learning_rate', 'optimizer.weight_decay'):
        if name in knobs:
            knobs[name] = bool(knobs[name])
    if not optimizer.depends_on_length(config.optimizer):
        del knobs['num_steps']
    return json.dumps(knobs, sort_keys=True)


def _describe_shapes(source: data.Source):
    """Everything in a data set that its program depends on; `inputs` is determined by the config."""
    arrays = data.one_example(source), source.tables
    leaves, structure = jax.tree.flatten(arrays)
    return (
        (source.name, source.task, source.label_names, tuple(sorted(source.vocabularies.items()))),
        (type(source.train), data.count(source.train)),
        # The size of a pool, an upper bound on the examples on the device.
        data.count(source.train.examples) if isinstance(source.train, data.LabelledPool) else None,
        source.unlabelled and (source.unlabelled.count, source.unlabelled.rows is None),
        (structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)),
    )
