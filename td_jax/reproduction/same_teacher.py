"""Names the public checkpoint that teaches, and checks that runs which are compared had the same one.

The location of a checkpoint is no part of a run's identity, because the same file may lie anywhere. Each run
records the fingerprint of its teacher's parameters instead.
"""

import functools
import json
from collections.abc import Iterable, Mapping

from etils import epath

from td_jax import config as config_lib
from td_jax.config import identity
from td_jax.devices import fingerprint
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import same_data
from td_jax.training import assembly, teachers

WAY_OUT = 'choose another --workdir and other files of cells and journals'
# The options that decide what the parameters of a checkpoint become in a run.
_PARTS = 'teacher.model.', 'teacher.dataset.', 'dataset.name', 'dataset.classes', 'dataset.image_size'


def has_public_teacher(config) -> bool:
    """Whether a run has a teacher, and that is a public checkpoint."""
    return bool(config.teacher.pretrained) and config_lib.has_teacher(config)


def replace(configs: Iterable, location: str) -> list:
    """Names a checkpoint in place of that of each config that has one; '' leaves them.

    Args:
      configs: are changed.
      location: as for `pretrained.read`.

    Raises:
      UserError: none of them has a public teacher, so that a location has no effect.
    """
    configs = list(configs)
    if location and not any(map(has_public_teacher, configs)):
        raise UserError(
            f'--teacher={location} has no effect: no run here has a public checkpoint as its teacher; leave '
            'it out.'
        )
    for config in configs if location else ():
        if config.teacher.pretrained:
            config.teacher.pretrained = location
    return configs


def part_of(config) -> str:
    """The options that decide a public teacher's parameters, as text; '' without a public teacher."""
    if not has_public_teacher(config):
        return ''
    options = {key: value for key, value in identity.identity(config).items() if key.startswith(_PARTS)}
    return json.dumps(options, sort_keys=True)


def fingerprint_of_run(config, folder: epath.Path) -> str:
    """The fingerprint of the public teacher of a run, '' if it has none or is not finished."""
    result = workdir.read_json(folder / workdir.RESULT) if has_public_teacher(config) else None
    return (result or {}).get('teacher_fingerprint') or ''


def check(runs: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """Refuses runs that were to have the same public teacher and had different ones.

    Args:
      runs: (part, by `part_of`; name of the run; fingerprint of its teacher, '' for unknown).

    Returns:
      {part: (a run, the fingerprint of its teacher)} of those that are known

    Raises:
      UserError: names two of them.
    """
    return same_data.find_first_runs(
        runs,
        lambda names, fingerprints: (
            f'{names[0]} and {names[1]} had different teachers (fingerprints {fingerprints[0][:12]} and '
            f'{fingerprints[1][:12]}), and cannot be compared; {WAY_OUT}.'
        ),
    )


def check_current(known: Mapping[str, tuple[str, str]], configs: Iterable):
    """Refuses a checkpoint that does not fit its configs, or is another one than taught the finished runs.

    Args:
      known: by `check`.
      configs: of the runs that are missing; a checkpoint is read once for each part.

    Raises:
      UserError: names the checkpoint, and a finished run or the options that do not fit.
    """
    for part, config in {part_of(config): config for config in configs}.items():
        if not part:
            continue
        current = _fingerprint(config_lib.to_json(config))
        name, before = known.get(part, ('', current))
        if current != before:
            raise UserError(
                f'{name} had another teacher than {config.teacher.pretrained} (fingerprint {before[:12]} '
                f'there, {current[:12]} here), and what is missing cannot be compared with it; name the '
                f'checkpoint that it had in --teacher, or {WAY_OUT}.'
            )


def check_choices(choices: Iterable[tuple[str, str, object]]):
    """Refuses to train with hyperparameters that were chosen with another public teacher.

    Args:
      choices: (what was chosen, for a person; the fingerprint of the teacher that it was chosen with, '' for
        unknown; the config of a run with it). A checkpoint is read once for each part.

    Raises:
      UserError: names the choice and the checkpoint.
    """
    fingerprints = {}
    for name, before, config in choices:
        part = part_of(config)
        if not part or not before:
            continue
        if part not in fingerprints:
            fingerprints[part] = _fingerprint(config_lib.to_json(config))
        current = fingerprints[part]
        if current != before:
            raise UserError(
                f'{name} were chosen with another teacher than {config.teacher.pretrained} (fingerprint '
                f'{before[:12]} there, {current[:12]} here); name that checkpoint in --teacher, or let '
                'td_jax.tune choose anew with this one.'
            )


@functools.cache
def _fingerprint(stored_config):
    config = config_lib.from_json(json.loads(stored_config))
    source = teachers.source_of(config, assembly.load_source(config, config.dataset))
    return fingerprint.of(teachers.load(config, epath.Path(), source).params)
