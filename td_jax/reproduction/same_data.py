"""Checks that runs which are compared were trained on the same data.

A run is known by its config, which has the name of a data set in it and not its content. Each says what it
was trained on, by data_record.digest; one of an older version does not, and is taken for the same.
"""

import json
from collections.abc import Iterable, Mapping

from etils import epath

from td_jax.config import identity
from td_jax.data import description
from td_jax.errors import UserError
from td_jax.training import assembly, data_record

WAY_OUT = 'restore the data, or choose another --workdir and other files of cells and journals'


def part_of(config) -> str:
    """What a config says of its students' data: which data set, how it is split, and what is taken of it."""
    own = {key: value for key, value in identity.identity(config).items() if key.startswith('dataset.')}
    return json.dumps(own, sort_keys=True)


def of_run(folder: epath.Path) -> str:
    """What the data of a run are known by, '' where it does not say.

    Raises:
      UserError: what it says of them is damaged.
    """
    return data_record.digest(folder)


def check(runs: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """Refuses runs on the same part of a data set that were trained on different data.

    Args:
      runs: (part, by `part_of`; what a person calls the run; what its data are known by, '' for unknown).

    Returns:
      {part: (a run, what its data are known by)} of those that are known

    Raises:
      UserError: names two of them.
    """
    found = {}
    for part, name, digest in runs:
        if not digest:
            continue
        first, known = found.setdefault(part, (name, digest))
        if digest != known:
            raise UserError(
                f'{first} and {name} were trained on different data under one name ({known}, {digest} in '
                f'their data.json), and cannot be compared; {WAY_OUT}.'
            )
    return found


def check_now(known: Mapping[str, tuple[str, str]], configs: Iterable):
    """Refuses to run what would be compared with runs that were trained on other data than there are now.

    Args:
      known: as `check` gives them.
      configs: of the runs that are missing; data are read once for each part that is known.

    Raises:
      UserError: names a run that is there.
    """
    for part, config in {part_of(config): config for config in configs}.items():
        if part not in known:
            continue
        source, (name, digest) = assembly.load_source(config, config.dataset), known[part]
        now = description.digest(description.describe(source))
        if now != digest:
            raise UserError(
                f'{name} was trained on other data than {source.name} is now ({digest} in its data.json, '
                f'{now} here), and what is missing cannot be compared with it; {WAY_OUT}.'
            )
