"""Trains and loads runs with a caller's own models, data sets or methods, from Python.

    import td_jax

    result = td_jax.train(config, 'runs/own', models={'convolutional': build})
    run = td_jax.load('runs/own', models={'convolutional': build})

During the call, the caller's own parts are in the tables of td_jax, under names of their own; all else is as
in `python -m td_jax.main`. A run records the parts that it uses next to its config, by name and by the digest
of their source.
"""

import contextlib

from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.files import workdir as workdir_lib
from td_jax.method import shared
from td_jax.training import finished, provenance, public_teacher, run


def train(config, workdir, *, models=None, sources=None, methods=None) -> dict:
    """Trains and evaluates a run, or resumes it.

    Args:
      config: by common.get_config(), changed; `config.model.name`, `config.teacher.model.name`,
        `config.dataset.name` and `config.method` may be names of the own parts below.
      workdir: folder of the run, or gs://BUCKET/PATH; made if missing, continued if it holds the same run.
      models: {name: build(model config, vocabularies, num_outputs, dtype) -> models.base.Model}, where
        vocabularies is {name: rows} of the id and word inputs, and num_outputs the number of outputs of the
        head.
      sources: {name: load(config.dataset, task) -> data.base.Source}.
      methods: {name: method.shared.Objective}; their weights are `config.own.NAME.weights`.

    Returns:
      the content of result.json

    Raises:
      UserError: anything the caller can correct, such as a name that td_jax has itself, or a run in workdir
        whose own parts had another source.
    """
    folder = workdir_lib.resolve(str(workdir))
    with use_parts(models, sources, methods):
        return run.train(public_teacher.complete(config, folder), folder)


def load(workdir, seed_index: int = 0, *, models=None, sources=None, methods=None) -> finished.FinishedRun:
    """Loads a finished run: its config, data, student and trained parameters.

    Predictions are `run.student.head(p, run.student.upper(p, run.student.lower(p, inputs)))` with
    `p = run.params['student']` and `inputs = run.source.inputs(run.source.tables, examples, None)`.

    Args:
      workdir: folder of the run, or gs://BUCKET/PATH.
      seed_index: which of its seeds, counted from 0.
      models, sources, methods: as for `train`, the own parts of the run.

    Raises:
      UserError: there is no finished run, an own part is missing or has another source, or its data have
        changed.
    """
    folder = workdir_lib.resolve(str(workdir))
    with use_parts(models, sources, methods):
        return finished.load(folder, seed_index, with_examples=True)


@contextlib.contextmanager
def use_parts(models=None, sources=None, methods=None):
    """Adds own parts to the tables within a context.

    Args:
      models, sources, methods: as for `train`.

    Raises:
      UserError: a name that td_jax has itself, or an invalid part.
    """
    parts_by_table = {'models': models, 'sources': sources, 'methods': methods}
    parts_by_table = {argument: dict(parts or {}) for argument, parts in parts_by_table.items()}
    for argument, parts in parts_by_table.items():
        for name, part in parts.items():
            _check_part(argument, name, part)
    try:
        for argument, parts in parts_by_table.items():
            provenance.TABLES[argument].update(parts)
        yield
    finally:
        for argument, parts in parts_by_table.items():
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
