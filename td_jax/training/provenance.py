"""The provenance of a caller's own models, data sets and methods in a run (td_jax.own).

A workdir keeps the name, the file and the digest of the source of each such part. A run that is continued, or
that counts as finished, must have been made from the same source. Parts of td_jax itself are identified by
its version.
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

# Argument of td_jax.train -> the table that its parts are added to.
TABLES = {'models': MODELS, 'sources': SOURCES, 'methods': objectives.METHODS}
# Argument -> the names of td_jax's own parts.
_TD_JAX = {argument: frozenset(table) for argument, table in TABLES.items()}


def describe(config) -> dict:
    """{argument: {name: {'file', 'sha256'}}} of a caller's own parts in a run.

    Args:
      config: of the run, while its parts are in TABLES.

    Raises:
      UserError: a part without a source.
    """
    models = [config.model.name, *([config.teacher.model.name] if config_lib.has_teacher(config) else [])]
    used = {'models': models, 'sources': [config.dataset.name], 'methods': [config.method]}
    provenance = {
        argument: {
            name: _describe_part(TABLES[argument][name]) for name in sorted(set(names) - _TD_JAX[argument])
        }
        for argument, names in used.items()
    }
    return {argument: parts for argument, parts in provenance.items() if parts}


def write(config, folder: epath.Path):
    """Writes the provenance of a run into its workdir, if the run has any parts of a caller."""
    provenance = describe(config)
    if provenance:
        workdir.write(folder / workdir.PROVENANCE, json.dumps(provenance, indent=2, sort_keys=True) + '\n')


def check_available(folder: epath.Path):
    """Refuses a run with parts that are not in TABLES.

    Raises:
      UserError: names the parts, their files, and how to read the run.
    """
    missing = {
        argument: {name: place for name, place in parts.items() if name not in TABLES[argument]}
        for argument, parts in _read(folder).items()
    }
    descriptions = [
        f'{name} of {place["file"]}' for parts in missing.values() for name, place in parts.items()
    ]
    if not descriptions:
        return
    arguments = [
        f'{argument}={{{", ".join(f"{name!r}: ..." for name in parts)}}}'
        for argument, parts in missing.items()
        if parts
    ]
    raise UserError(
        f'{folder} uses parts of your own, {", ".join(descriptions)}; read it from Python, with '
        f'td_jax.load({str(folder)!r}, {", ".join(arguments)}).'
    )


def check(config, folder: epath.Path):
    """Refuses a run in a workdir if the source of one of its parts has changed.

    Raises:
      UserError: names the part and its file.
    """
    before = _read(folder)
    for argument, parts in describe(config).items():
        for name, now in parts.items():
            if before.get(argument, {}).get(name, now) != now:
                raise UserError(
                    f'{folder} was made of another {name}: {now["file"]} has changed since. Put it back, '
                    f'choose another workdir, or delete {folder / workdir.PROVENANCE} if the change does '
                    'not matter.'
                )


def _read(folder):
    path = folder / workdir.PROVENANCE
    provenance = workdir.read_json(path) or {}
    is_right = provenance.keys() <= TABLES.keys() and all(
        isinstance(parts, dict)
        and all(isinstance(place, dict) and 'file' in place for place in parts.values())
        for parts in provenance.values()
    )
    if not is_right:
        raise UserError(f'{path} is damaged; delete it, if the files that it was made of are the same.')
    return provenance


def _describe_part(part) -> dict:
    """The file of a part and the digest of its source: of whole files, or of cells of a notebook."""
    functions = (part.init, part.terms) if isinstance(part, shared.Objective) else (part,)
    # The function of a functools.partial, the class of an object.
    functions = [inspect.unwrap(getattr(function, 'func', function)) for function in functions]
    definitions = [f if inspect.isroutine(f) or inspect.isclass(f) else type(f) for f in functions]
    try:
        files = [pathlib.Path(inspect.getsourcefile(f) or '') for f in definitions]
        if pathlib.Path('<string>') in files:
            # For any code from a string, Python 3.13 returns the program of `python -c`.
            raise OSError('the source of a string is not kept')
        # The whole file, because a function depends on what surrounds it. A notebook's cell has no file.
        sources = [
            file.read_text(encoding='utf-8', errors='replace') if file.is_file() else inspect.getsource(f)
            for file, f in zip(files, definitions, strict=True)
        ]
    except (OSError, TypeError) as error:
        raise UserError(
            f'{getattr(definitions[-1], "__name__", part)} has no source to identify it by; put it in a file.'
        ) from error
    name = files[-1].name if files[-1].is_file() else 'a notebook'
    return {'file': name, 'sha256': hashlib.sha256('\n'.join(sources).encode()).hexdigest()}
