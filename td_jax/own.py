"""Runs whose models, data sets or methods are in a caller's own file, from Python.

    import td_jax

    result = td_jax.train(config, 'runs/own', models={'convolutional': build})
    run = td_jax.load('runs/own', models={'convolutional': build})

What is brought stands in the tables beside what td_jax has, under names of its own, while the call lasts; all
else is as `python -m td_jax.main` does it. What a run is made of is kept beside its config, by name and by
the digest of its source.
"""

import contextlib
import hashlib
import inspect
import pathlib

from td_jax import config as config_lib
from td_jax.data import SOURCES
from td_jax.errors import UserError
from td_jax.files import workdir as workdir_lib
from td_jax.method import objectives, shared
from td_jax.models import MODELS
from td_jax.training import finished, run

# What can be brought, by the name of its argument -> the table it stands in.
TABLES = {'models': MODELS, 'sources': SOURCES, 'methods': objectives.METHODS}


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
      UserError: anything the caller can mend, such as a name that td_jax has itself, or a run in workdir that
        was made of another source.
    """
    folder = workdir_lib.resolve(str(workdir))
    with brought(models, sources, methods) as parts:
        config_lib.check(config)
        made_of = _made_of(config, parts)
        _check_made_of(folder, made_of)
        return run.train(config, folder, made_of=made_of)


def load(workdir, seed_index: int = 0, *, models=None, sources=None, methods=None) -> finished.Finished:
    """A finished run: its config, its data, its student and the parameters it ended with.

    Predictions are `run.student.head(p, run.student.upper(p, run.student.lower(p, inputs)))` with
    `p = run.params['student']` and `inputs = run.source.inputs(run.source.tables, examples, None)`.

    Args:
      workdir: folder of the run, or gs://BUCKET/PATH.
      seed_index: which of its seeds, counted from 0.
      models, sources, methods: as in `train`, what the run was made of.

    Raises:
      UserError: no finished run is there, a part of it is not brought, or it was made of another source.
    """
    folder = workdir_lib.resolve(str(workdir))
    with brought(models, sources, methods) as parts:
        found = finished.load(folder, seed_index)
        _check_made_of(folder, _made_of(found.config, parts))
        return found


@contextlib.contextmanager
def brought(models=None, sources=None, methods=None):
    """Puts what is brought into the tables while the block runs.

    Args:
      models, sources, methods: as in `train`.

    Yields:
      {argument: {name: part}}

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
            TABLES[argument].update(parts)
        yield given
    finally:
        for argument, parts in given.items():
            for name in parts:
                TABLES[argument].pop(name, None)


def _check_part(argument, name, part):
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f'{argument} has {name!r}; the name of a part is a word of letters, digits and _.')
    if name in TABLES[argument]:
        raise UserError(f'{argument} has {name!r}, which td_jax has itself; give yours another name.')
    if argument == 'methods' and not isinstance(part, shared.Objective):
        raise UserError(
            f'methods has {name!r}, a {type(part).__name__}; it must be a td_jax.method.shared.Objective.'
        )
    if argument != 'methods' and not callable(part):
        raise UserError(f'{argument} has {name!r}, a {type(part).__name__}; it must be a function.')


def _made_of(config, given) -> dict:
    """{argument: {name: {'file', 'sha256'}}} of what a config uses of what is brought."""
    used = {
        'models': {config.model.name, config.teacher.model.name},
        'sources': {config.dataset.name},
        'methods': {config.method},
    }
    found = {
        argument: {name: _source_of(part) for name, part in sorted(parts.items()) if name in used[argument]}
        for argument, parts in given.items()
    }
    return {argument: parts for argument, parts in found.items() if parts}


def _source_of(part) -> dict:
    """The name of the file that a part is from, and the digest of that file, or of the cell of a notebook."""
    function = part.terms if isinstance(part, shared.Objective) else inspect.unwrap(part)
    # Of functools.partial what it calls, of an object its class.
    function = getattr(function, 'func', function)
    described = function if hasattr(function, '__code__') or inspect.isclass(function) else type(function)
    try:
        file = pathlib.Path(inspect.getsourcefile(described) or '')
        # What stands around a function is part of what it does; a cell of a notebook is no file.
        source = file.read_text() if file.is_file() else inspect.getsource(described)
    except (OSError, TypeError):
        # Typed at a prompt, where no source is kept.
        file, source = pathlib.Path(), getattr(described, '__code__', compile('', '', 'exec')).co_code.hex()
    name = file.name if file.is_file() else 'a notebook'
    return {'file': name, 'sha256': hashlib.sha256(source.encode()).hexdigest()}


def _check_made_of(folder, made_of):
    """Refuses to take a run for one of today's source that was made of another."""
    path = folder / workdir_lib.MADE_OF
    before = workdir_lib.read_json(path) or {}
    for argument, parts in made_of.items():
        for name, now in parts.items():
            then = before.get(argument, {}).get(name, now)
            if then != now:
                raise UserError(
                    f'{folder} was made of another {name}: {now["file"]} has changed since. Put it back, '
                    f'choose another workdir, or delete {path} if the change is of no account.'
                )
