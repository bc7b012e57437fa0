"""Tells whether two runs are the same: by their configs, without keys that cannot change the result."""

import hashlib
import json

from td_jax.config.effect import find_unread
from td_jax.config.tree import FIRST_PROTOCOL, INHERITED_KEYS, flatten, make_explicit, to_json
from td_jax.configs import common

# Keys that cannot change the result: how often a run logs and saves, diagnostics and trackers, how much it
# computes at once, on which devices, what it computes twice to save memory, and where its teacher lies. Every
# other key, new ones included, is part of a run's identity.
IRRELEVANT_KEYS = (
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
    'tracking.wandb',
    'tracking.mlflow',
)


def identity(config) -> dict:
    """The keys that decide the result of a run: {dotted key: value, as JSON holds it}.

    Keys that cannot change the result (IRRELEVANT_KEYS) and those that this run does not read are left out. A
    teacher is identified by its fingerprint, which a run stores next to its config, not by its location.
    """
    stored = _flatten_as_stored(config)
    return {key: stored[key] for key in _relevant_keys(config, stored)}


def complete(stored: dict) -> dict:
    """Completes a config that was read from JSON by the defaults of missing keys: {dotted key: value}."""
    return _reset_inherited(_flatten_as_stored(common.get_config()) | make_explicit(stored))


def digest(config) -> str:
    """A short digest of a run's identity.

    Keys at their defaults are left out, so that a new option at its default changes no digest; the values of
    another protocol count.
    """
    defaults = _flatten_as_stored(common.get_config()) | FIRST_PROTOCOL
    changed = {key: value for key, value in identity(config).items() if value != defaults.get(key)}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]


def differences(config, stored: dict) -> dict:
    """Compares two runs: {key: (value in `stored`, value in `config`)} where they differ; None if missing.

    Args:
      config: of the requested run.
      stored: the config of the other run, as read from JSON. A missing key is at its default; a key that this
        version of td_jax does not know is a difference, whatever its value.
    """
    now, before = identity(config), complete(stored)
    keys = sorted(_relevant_keys(config, now.keys() | before.keys()))
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def describe(differences: dict) -> str:
    """Describes `differences` in one line."""
    known = flatten(common.get_config()).keys()
    return ', '.join(
        f'{key} ({_format_value(old)} there, {_format_value(new)} here)'
        if key in known or '.embeddings.' in key
        else f'{key} ({_format_value(old)} there, not known to this version of td_jax)'
        for key, (old, new) in differences.items()
    )


def _format_value(value):
    return 'none' if value in (None, '') else value


def _flatten_as_stored(config):
    return _reset_inherited(flatten(json.loads(to_json(config))))


def _reset_inherited(flat):
    """Resets keys of the teacher's images to their defaults where they equal the student's."""
    defaults = common.teacher_config().dataset
    resets = {
        f'teacher.dataset.{key}': defaults[key]
        for key in INHERITED_KEYS
        if f'dataset.{key}' in flat and flat.get(f'teacher.dataset.{key}') == flat[f'dataset.{key}']
    }
    return flat | resets


def _relevant_keys(config, keys):
    """Selects the keys that are part of a run's identity."""
    starts = tuple(find_unread(config))
    return [key for key in keys if key not in IRRELEVANT_KEYS and not key.startswith(starts)]
