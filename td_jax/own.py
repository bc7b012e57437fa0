"""Runs whose models, data sets or methods are in a caller's own file, from Python.

    import td_jax

    result = td_jax.train(config, 'runs/own', models={'convolutional': build})
    run = td_jax.load('runs/own', models={'convolutional': build})

A caller's own parts stand in the tables next to what td_jax has, under names of their own, while the call
lasts; all else is as `python -m td_jax.main` does it. A run records which of them it uses next to its config,
by name and by the digest of its source.
"""

import contextlib

from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.files import workdir as workdir_lib
from td_jax.method import shared
from td_jax.training import finished, provenance, public_teacher, run


def train(config, workdir, *, models=None, sources=None, methods=None) -> dict:
    """Trains what a config describes, from wherever its workdir stands, and evaluates it.

    Args:
      config: what common.get_config() returns, changed; `config.model.name`, `config.teacher.model.name`,
        `config.dataset.name` and `config.method` may be names that are brought here.
      workdir: folder of the run, or gs://BUCKET/PATH; made if missing, continued if it holds the same run.
      models: {name: build(model config, vocabularies, num_outputs, dtype) -> models.base.Model}, where
        vocabularies is {name: rows} of the id and word inputs, and num_outputs what the head predicts.
      sources: {name: load(config.dataset, task) -> data.base.Source}.
      methods: {name: method.shared.Objective}; their weights are `config.own.NAME.weights`.

    Returns:
      The content of result.json.

    Raises:
      UserError: anything the caller can correct, such as a name that td_jax has itself, or a run in workdir
        that was made of another source.
    """
    folder = workdir_lib.resolve(str(workdir))
    with brought(models, sources, methods):
        return run.train(public_teacher.complete(config, folder), folder)


def load(workdir, seed_index: int = 0, *, models=None, sources=None, methods=None) -> finished.FinishedRun:
    """A finished run: its config, its data, its student and the parameters it ended with.

    Predictions are `run.student.head(p, run.student.upper(p, run.student.lower(p, inputs)))` with
    `p = run.params['student']` and `inputs = run.source.inputs(run.source.tables, examples, None)`.

    Args:
      workdir: folder of the run, or gs://BUCKET/PATH.
      seed_index: which of its seeds, counted from 0.
      models, sources, methods: as in `train`, what the run was made of.

    Raises:
      UserError: no finished run is there, a part of it is not brought, it was made of another source, or its
        data have changed since.
    """
    folder = workdir_lib.resolve(str(workdir))
    with brought(models, sources, methods):
        return finished.load(folder, seed_index, with_examples=True)


@contextlib.contextmanager
def brought(models=None, sources=None, methods=None):
    """Puts what is brought into the tables while the block runs.

    Args:
      models, sources, methods: as in `train`.

    Raises:
      UserError: a name that td_jax has itself, or what is no part.
    """
    given = {'models': models, 'sources': sources, 'methods': methods}
    given = {argument: dict(parts or {}) for argument, parts in given.items()}
    for argument, parts in given.items():
        for name, part in parts.items():
            _check_part(argument, name, part)
    try:
        for argument, parts in given.items():
            provenance.TABLES[argument].update(parts)
        yield
    finally:
        for argument, parts in given.items():
            for name in parts:
                provenance.TABLES[argument].pop(name, None)


def _check_part(argument, name, part):
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f'{argument} has {name!r}; the name of a part is a word of letters, digits and _.')
    if name in provenance.TABLES[argument] or name in common.get_config():
        raise UserError(f'{argument} has {name!r}, which td_jax has itself; give yours another name.')
    if argument == 'methods' and not isinstance(part, shared.Objective):
        raise UserError(
            f'methods has {name!r}, a {type(part).__name__}; it must be a td_jax.method.shared.Objective.'
        )
    if argument != 'methods' and not callable(part):
        raise UserError(f'{argument} has {name!r}, a {type(part).__name__}; it must be a function.')
