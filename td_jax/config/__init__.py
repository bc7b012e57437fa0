"""A run's config: what is refused of it, what makes two the same, and which of its options have an effect."""

from td_jax.config.checks import check, check_choice, check_names
from td_jax.config.effect import OF_MODELS, said_of, without_effect
from td_jax.config.identity import completed, describe, differences, digest
from td_jax.config.tree import (
    OF_STUDENT,
    PROTOCOL,
    flatten,
    from_json,
    has_teacher,
    teacher_run,
    to_json,
    trains_teacher,
)

__all__ = [
    'OF_MODELS',
    'OF_STUDENT',
    'PROTOCOL',
    'check',
    'check_choice',
    'check_names',
    'completed',
    'describe',
    'differences',
    'digest',
    'flatten',
    'from_json',
    'has_teacher',
    'said_of',
    'teacher_run',
    'to_json',
    'trains_teacher',
    'without_effect',
]
