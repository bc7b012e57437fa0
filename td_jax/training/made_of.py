"""What a run is made of that a caller brought (td_jax.own): by name, file and digest, kept beside its config.

What td_jax has itself is known by its version; what is brought may change between two calls, and a run that
goes on, or is taken for finished, must be of the same source.
"""

import hashlib
import inspect
import json
import pathlib

from etils import epath

from td_jax import config as config_lib
from td_jax.data import SOURCES
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.method import objectives, shared
from td_jax.models import MODELS

# What can be brought, by the name of td_jax.train's argument -> the table it stands in.
TABLES = {'models': MODELS, 'sources': SOURCES, 'methods': objectives.METHODS}
# What is in them before anybody brings anything.
_TD_JAX = {argument: frozenset(table) for argument, table in TABLES.items()}


def of(config) -> dict:
    """{argument: {name: {'file', 'sha256'}}} of what a run of a config is made of that was brought.

    Args:
      config: of the run, while the block of `own.brought` lasts.

    Raises:
      UserError: a part without a source.
    """
    models = [config.model.name, *([config.teacher.model.name] if config_lib.has_teacher(config) else [])]
    used = {'models': models, 'sources': [config.dataset.name], 'methods': [config.method]}
    found = {
        argument: {
            name: _source_of(TABLES[argument][name]) for name in sorted(set(names) - _TD_JAX[argument])
        }
        for argument, names in used.items()
    }
    return {argument: parts for argument, parts in found.items() if parts}


def write(config, folder: epath.Path):
    """Writes what a run is made of into its workdir; nothing where nothing was brought."""
    found = of(config)
    if found:
        workdir.write(folder / workdir.MADE_OF, json.dumps(found, indent=2, sort_keys=True) + '\n')


def check_there(folder: epath.Path):
    """Refuses a run that is made of what is not there now.

    Raises:
      UserError: names the parts, their files, and how the run is read.
    """
    missing = {
        argument: {name: place for name, place in parts.items() if name not in TABLES[argument]}
        for argument, parts in _stored(folder).items()
    }
    said = [f'{name} of {place["file"]}' for parts in missing.values() for name, place in parts.items()]
    if not said:
        return
    arguments = [
        f'{argument}={{{", ".join(f"{name!r}: ..." for name in parts)}}}'
        for argument, parts in missing.items()
        if parts
    ]
    raise UserError(
        f'{folder} is made of what is not here, {", ".join(said)}; read it from Python, with '
        f'td_jax.load({str(folder)!r}, {", ".join(arguments)}).'
    )


def check(config, folder: epath.Path):
    """Refuses to take the run in a workdir for one of a config if what was brought for it has changed.

    Raises:
      UserError: names the part and its file.
    """
    before = _stored(folder)
    for argument, parts in of(config).items():
        for name, now in parts.items():
            if before.get(argument, {}).get(name, now) != now:
                raise UserError(
                    f'{folder} was made of another {name}: {now["file"]} has changed since. Put it back, '
                    f'choose another workdir, or delete {folder / workdir.MADE_OF} if the change is of no '
                    'account.'
                )


def _stored(folder):
    path = folder / workdir.MADE_OF
    found = workdir.read_json(path) or {}
    is_right = found.keys() <= TABLES.keys() and all(
        isinstance(parts, dict)
        and all(isinstance(place, dict) and 'file' in place for place in parts.values())
        for parts in found.values()
    )
    if not is_right:
        raise UserError(f'{path} is damaged; delete it, if the files that it was made of are the same.')
    return found


def _source_of(part) -> dict:
    """The file that a part is from, and the digest of its source: whole files, or the cells of a notebook."""
    functions = (part.init, part.terms) if isinstance(part, shared.Objective) else (part,)
    # Of functools.partial what it calls, of an object its class.
    functions = [inspect.unwrap(getattr(function, 'func', function)) for function in functions]
    described = [f if inspect.isroutine(f) or inspect.isclass(f) else type(f) for f in functions]
    try:
        files = [pathlib.Path(inspect.getsourcefile(f) or '') for f in described]
        if pathlib.Path('<string>') in files:
            # Python 3.13 takes the program of `python -c` for the source of whatever else was a string.
            raise OSError('the source of a string is not kept')
        # What stands around a function is part of what it does; a cell of a notebook is no file.
        sources = [
            file.read_text() if file.is_file() else inspect.getsource(f)
            for file, f in zip(files, described, strict=True)
        ]
    except (OSError, TypeError) as error:
        raise UserError(
            f'{getattr(described[-1], "__name__", part)} was brought, but has no source to know it again by; '
            'put it in a file.'
        ) from error
    name = files[-1].name if files[-1].is_file() else 'a notebook'
    return {'file': name, 'sha256': hashlib.sha256('\n'.join(sources).encode()).hexdigest()}
