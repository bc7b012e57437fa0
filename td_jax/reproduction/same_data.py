"""Checks that runs which are compared were trained on the same data.

A config has the name of a data set, but not its content. Each run therefore records the digest of its data
(data_record.digest). Runs of older versions have none, and count as trained on the same data.
"""

import json
from collections.abc import Callable, Iterable, Mapping

from etils import epath

from td_jax.config import identity
from td_jax.data import description
from td_jax.errors import UserError
from td_jax.training import assembly, data_record

WAY_OUT = 'restore the data, or choose another --workdir and other files of cells and journals'


def part_of(config) -> str:
    """The options of a config that select its students' data: data set, split and subset, as text."""
    options = {key: value for key, value in identity.identity(config).items() if key.startswith('dataset.')}
    # Not all methods read examples without labels. A digest is of those with labels, except that the first
    # ones are recorded with the rest where that is read, too.
    if config.dataset.labelled_by != 'first' or not config.dataset.unlabelled:
        options.pop('dataset.unlabelled', None)
    return json.dumps(options, sort_keys=True)


def digest_of_run(folder: epath.Path) -> str:
    """The digest of the data of a run, '' if it has none.

    Raises:
      UserError: the record is damaged.
    """
    return data_record.digest(folder)


def check(runs: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """Refuses runs on the same part of a data set that were trained on different data.

    Args:
      runs: (part, by `part_of`; name of the run; digest of its data, '' for unknown).

    Returns:
      {part: (a run, the digest of its data)} of those that are known

    Raises:
      UserError: names two of them.
    """
    return find_first_runs(
        runs,
        lambda names, digests: (
            f'{names[0]} and {names[1]} were trained on different data under one name ({digests[0]}, '
            f'{digests[1]} in their data.json), and cannot be compared; {WAY_OUT}.'
        ),
    )


def find_first_runs(
    runs: Iterable[tuple[str, str, str]], describe: Callable[[tuple, tuple], str]
) -> dict[str, tuple[str, str]]:
    """Finds the first run of each part, and refuses a later one that does not agree with it.

    Args:
      runs: (part; name of the run; digest of what the runs of a part share). A run whose part or digest is ''
        is left out.
      describe: (two names, their digests) -> the message for runs that disagree.

    Returns:
      {part: (the first run, its digest)}

    Raises:
      UserError: two runs of a part have different digests.
    """
    first_runs = {}
    for part, name, digest in runs:
        if not part or not digest:
            continue
        first, first_digest = first_runs.setdefault(part, (name, digest))
        if digest != first_digest:
            raise UserError(describe((first, name), (first_digest, digest)))
    return first_runs


def check_current(known: Mapping[str, tuple[str, str]], configs: Iterable):
    """Refuses to run configs whose data have changed since the runs that they would be compared with.

    Args:
      known: by `check`.
      configs: of the runs that are missing; data are read once for each part that is known.

    Raises:
      UserError: names a finished run.
    """
    for part, config in {part_of(config): config for config in configs}.items():
        if part not in known:
            continue
        source, (name, digest) = assembly.load_source(config, config.dataset), known[part]
        current = description.digest(description.describe(source))
        if current != digest:
            raise UserError(
                f'{name} was trained on other data than {source.name} is now ({digest} in its data.json, '
                f'{current} here), and what is missing cannot be compared with it; {WAY_OUT}.'
            )
