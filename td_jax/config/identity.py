"""What makes two runs the same: their configs, without what cannot change the result or is not read."""

import hashlib
import json

from td_jax.config.effect import unread
from td_jax.config.tree import FIRST_PROTOCOL, OF_STUDENT, explicit, flatten, to_json
from td_jax.configs import common

# Keys that cannot change the result: how often a run logs and saves, what it says of itself, how much it
# computes at once, on which devices, what it computes twice to save memory, and where its teacher lies. Every
# other key, a new one too, is part of what a run is.
WITHOUT_EFFECT = (
    'log_every',
    'diagnostics',
    'save_every',
    'eval_batch_size',
    'mesh.data',
    'mesh.fsdp',
    'model.remat_policy',
    'teacher.model.remat_policy',
    'td.remat_policy',
    'teacher.checkpoint',
    'teacher.pretrained',
    'teacher.probe_gb',
)


def identity(config) -> dict:
    """{dotted key: value, as JSON holds it} of what makes a run what it is.

    Left out is what cannot change the result (WITHOUT_EFFECT), and what a run of this method does not read. A
    teacher is known by its fingerprint, not by where it lies: a run keeps that next to its config.
    """
    stored = _as_stored(config)
    return {key: stored[key] for key in _that_count(config, stored)}


def completed(stored: dict) -> dict:
    """{dotted key: value} of a config that was read back from JSON; a key that it lacks is at its default."""
    return _with_defaults_of_student(_as_stored(common.get_config()) | explicit(stored))


def digest(config) -> str:
    """A short name of a run's identity.

    A key at its default adds nothing, so that a new option, at its default, changes no digest. What
    another protocol does otherwise, it adds.
    """
    defaults = _as_stored(common.get_config()) | FIRST_PROTOCOL
    changed = {key: value for key, value in identity(config).items() if value != defaults.get(key)}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]


def differences(config, stored: dict) -> dict:
    """{key: (value in `stored`, value in `config`)} where two runs are not the same; a missing value is None.

    Args:
      config: of the run that is wanted.
      stored: the dict that was read back from the JSON of the other. A key that it lacks is at its default;
        one that this version of td_jax does not know is a difference, whatever its value.
    """
    now, before = identity(config), completed(stored)
    keys = sorted(_that_count(config, now.keys() | before.keys()))
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def describe(differences: dict) -> str:
    """One line of `differences`."""
    known = flatten(common.get_config()).keys()
    return ', '.join(
        f'{key} ({_said(old)} there, {_said(new)} here)'
        if key in known or '.embeddings.' in key
        else f'{key} ({_said(old)} there, not known to this version of td_jax)'
        for key, (old, new) in differences.items()
    )


def _said(value):
    return 'none' if value in (None, '') else value


def _as_stored(config):
    return _with_defaults_of_student(flatten(json.loads(to_json(config))))


def _with_defaults_of_student(flat):
    """A flat config that leaves open how the teacher is shown images where that is as the student is."""
    defaults = common.teacher_config().dataset
    same = {
        f'teacher.dataset.{key}': defaults[key]
        for key in OF_STUDENT
        if f'dataset.{key}' in flat and flat.get(f'teacher.dataset.{key}') == flat[f'dataset.{key}']
    }
    return flat | same


def _that_count(config, keys):
    """Those among some keys that are part of what a run is."""
    starts = tuple(unread(config))
    return [key for key in keys if key not in WITHOUT_EFFECT and not key.startswith(starts)]
