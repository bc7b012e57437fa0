"""What the runs of one process have traced and compiled, for others that would compile the same.

To trace a step and to look up its program takes as long as hundreds of steps of a small model, and the runs
of a table or a search differ in little but what a compiled step is given: data of the same shapes, seeds,
parameters of the teacher, weights and rates.
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

# How many are kept. Hundreds would fill the memory.
MOST = 32
# The mappings of memory that a process of Linux has, a line each, and how many it may have. A compiled
# program of a CPU takes thousands of them; a process that gets no more cannot compile, and dies.
MAPPINGS = pathlib.Path('/proc/self/maps')
MOST_MAPPINGS = pathlib.Path('/proc/sys/vm/max_map_count')
# Knobs that no program has in it: those of random keys, and where the teacher's parameters come from.
GIVEN = 'role', 'protocol', 'seed', 'seed_step', 'teacher.seed', 'teacher.checkpoint'


class Programs:
    """What was made for the programs of some runs, each made once."""

    def __init__(self):
        self._made = {}

    def of(
        self, config, source: data.Source, teacher_source: data.Source | None, mesh, make: Callable
    ) -> Any:
        """What `make` gives for the first run with these programs.

        Args:
          config: of the run, checked.
          source: the student's data.
          teacher_source: the data of its teacher, or None.
          mesh: the devices, by sharding.make_mesh.
          make: called without arguments; what it raises is not kept.
        """
        key = knobs_of(config), _shapes(source), teacher_source and _shapes(teacher_source), mesh
        if key not in self._made:
            if len(self._made) == MOST or _mappings_run_short():
                self._made.clear()
                # JAX holds compiled programs for longer than their functions are there.
                jax.clear_caches()
            self._made[key] = make()
        return self._made[key]


def _mappings_run_short() -> bool:
    """Whether half of the mappings are taken, the other half being for what is compiled next.

    False where the system does not say: another one has no such limit.
    """
    try:
        return 2 * MAPPINGS.read_bytes().count(b'\n') > int(MOST_MAPPINGS.read_text())
    except (OSError, ValueError):
        return False


def knobs_of(config) -> str:
    """The knobs that a run reads, without what programs are given; of a number given, whether it is 0."""
    knobs = config_lib.flatten(config)
    for name in {*GIVEN, *config_lib.without_effect(config, knobs)}:
        del knobs[name]
    # As in train_step.read_hyperparameters.
    numbers = [f'{config.method}.weights.{term}' for term in objectives.weights_of(config)]
    for name in (*numbers, 'optimizer.learning_rate', 'optimizer.weight_decay'):
        if name in knobs:
            knobs[name] = bool(knobs[name])
    if not optimizer.depends_on_length(config.optimizer):
        del knobs['num_steps']
    return json.dumps(knobs, sort_keys=True)


def _shapes(source: data.Source):
    """All that a program has in it of a data set; `inputs` is made of the config."""
    arrays = data.one_example(source), source.tables
    leaves, structure = jax.tree.flatten(arrays)
    return (
        (source.name, source.task, source.label_names, tuple(sorted(source.vocabularies.items()))),
        (type(source.train), data.count(source.train)),
        # Of a pool, how many are on the device at the most.
        data.count(source.train.examples) if isinstance(source.train, data.LabelledPool) else None,
        (structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)),
    )
