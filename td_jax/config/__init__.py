"""The config of a run: its checks, what makes two configs the same, and which options have an effect."""

from td_jax.config.checks import check, check_choice, check_key, check_names
from td_jax.config.effect import MODEL_OPTIONS, describe_without_effect, explain_without_effect
from td_jax.config.identity import complete, describe, differences, digest
from td_jax.config.tree import (
    INHERITED_KEYS,
    PROTOCOL,
    flatten,
    from_json,
    has_teacher,
    has_unlabelled,
    teacher_run,
    to_json,
    trains_teacher,
)

__all__ = [
    'INHERITED_KEYS',
    'MODEL_OPTIONS',
    'PROTOCOL',
    'check',
    'check_choice',
    'check_key',
    'check_names',
    'complete',
    'describe',
    'describe_without_effect',
    'differences',
    'digest',
    'explain_without_effect',
    'flatten',
    'from_json',
    'has_teacher',
    'has_unlabelled',
    'teacher_run',
    'to_json',
    'trains_teacher',
]
