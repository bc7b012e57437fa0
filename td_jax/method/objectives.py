"""The loss that a student minimises; each method is an Objective in one plain table.

    loss = task + sum over terms of config.METHOD.weights[term] * mean over examples of the term

The formulas of the terms are in td_jax.losses. talking.py applies them to a run's models for Talking-model
Distillation, one_way.py for other methods that compare states, and logits.py for methods that compare
predictions; shared.py has what all of them use. To add a method, write its `terms` (and `init`, if it learns
parameters of its own), add a line to METHODS and its weights to td_jax/configs/common.py.
"""

import jax.numpy as jnp
import optax

from td_jax.devices import precision
from td_jax.errors import UserError
from td_jax.method import logits, one_way, talking
from td_jax.method.shared import Objective, no_parameters

# --- The task itself -------------------------------------------------------------------------------


def squared_error(predictions, labels):
    """(y - label)^2. predictions: [batch, 1], labels: [batch] -> [batch]."""
    if predictions.shape != (*labels.shape, 1):
        raise ValueError(f'Predictions {predictions.shape} do not fit labels {labels.shape}.')
    return jnp.square(predictions[:, 0] - labels)


# name -> f(predictions [batch, outputs], labels [batch]) -> [batch]
TASK_LOSSES = {
    'regression': squared_error,
    'classification': optax.softmax_cross_entropy_with_integer_labels,
}


# --- Methods ---------------------------------------------------------------------------------------


def supervised_terms(params, student, teacher, labels, config, key):
    """The student alone: the task loss and nothing else."""
    return {}


METHODS = {
    'supervised': Objective(no_parameters, supervised_terms, {}),
    'ld': Objective(logits.init_bridge, logits.ld_terms, {'bridged_logits': ('logits',)}),
    'fd': Objective(one_way.init_fd, one_way.fd_terms, {'states': ('feature',)}, messages=one_way.messages),
    'fitnet': Objective(one_way.init_fitnet, one_way.fitnet_terms, {'states': ('state',)}),
    'hybrid': Objective(
        one_way.init_hybrid,
        one_way.hybrid_terms,
        {'states': ('feature',), 'bridged_logits': ('logits',)},
        messages=one_way.messages,
    ),
    'td': Objective(
        talking.init_td,
        talking.td_terms,
        {'states': ('interact', 'message', 'state'), 'bridged_logits': ('logits',)},
        messages=one_way.messages,
    ),
    'rkd': Objective(
        no_parameters, one_way.rkd_terms, {'representations': ('distance', 'angle')}, smallest_batch=3
    ),
    'crd': Objective(
        one_way.init_crd, one_way.crd_terms, {'representations': ('contrast',)}, smallest_batch=2
    ),
    'srd': Objective(
        one_way.init_srd, one_way.srd_terms, {'representations': ('projection',)}, smallest_batch=2
    ),
    'dkd': Objective(
        logits.init_bridge,
        logits.dkd_terms,
        {'bridged_logits': ('target', 'others')},
        tasks=('classification',),
        bridges=('shared', 'probe'),
        # With two classes there is one besides the label, whose share of the others is 1.
        fewest_classes={'others': 3},
    ),
    'dist': Objective(
        logits.init_bridge,
        logits.dist_terms,
        {'bridged_logits': ('inter', 'intra')},
        tasks=('classification',),
        smallest_batch=2,
        # Two numbers correlate by 1 or -1, so there is no gradient.
        fewest_classes={'inter': 3},
    ),
}

# The parts of a teacher that are predictions.
PREDICTIONS = {'logits', 'bridged_logits'}


def objective_of(config) -> Objective:
    """The configured method, exact by devices.precision."""
    method = METHODS[config.method]
    functions = {name: getattr(method, name) for name in ('init', 'terms', 'messages')}
    return method._replace(
        **{name: function and precision.exact(function) for name, function in functions.items()}
    )


def weights_of(config) -> dict[str, float]:
    """{term: weight} of the configured method."""
    if config.method == 'supervised':
        return {}
    section = config
    for name in section_of(config).split('.'):
        section = section[name]
    return section.weights.to_dict()


def section_of(config) -> str:
    """The dotted key of the options of the configured method; of a caller's they are in config.own."""
    return config.method if config.method in config else f'own.{config.method}'


def active_terms(config) -> list[str]:
    """The terms of the configured method whose weight is not 0; none for a student that is trained alone."""
    return [term for term, weight in weights_of(config).items() if weight]


def constant_terms(config, num_classes: int) -> list[str]:
    """The active terms that are constant with so few classes, so that they have no gradient.

    Args:
      config: of the run.
      num_classes: of the predictions that its terms compare.
    """
    fewest = METHODS[config.method].fewest_classes
    return [term for term in active_terms(config) if num_classes < fewest.get(term, 0)]


def reads_teacher(config) -> bool:
    """Whether the configured method has a teacher at all."""
    return bool(METHODS[config.method].reads)


def reads(config, part: str) -> bool:
    """Whether an active term of the configured method reads a part of the teacher."""
    return bool(_active_readers(config, part))


def has_probe(config) -> bool:
    """Whether a run compares its student's predictions with those of a probe on the teacher."""
    return config.teacher.labels == 'probe' and reads(config, 'bridged_logits')


def _active_readers(config, part):
    """The active terms of the configured method that read a part of the teacher."""
    weights = weights_of(config)
    return [term for term in METHODS[config.method].reads.get(part, ()) if weights[term]]


def check_labels(config, student_labels, teacher_labels):
    """Refuses a term on predictions between models that predict different labels.

    Args:
      student_labels, teacher_labels: the name of each output's label.

    Raises:
      UserError: the labels differ, or the teacher has no head; the message names the options that help.
    """
    plain, bridged = _active_readers(config, 'logits'), _active_readers(config, 'bridged_logits')
    if not plain and (not bridged or config.teacher.labels == 'probe'):
        return
    if not teacher_labels:
        weights = ', '.join(f'{config.method}.weights.{term}' for term in (*plain, *bridged))
        others = ' or '.join(
            name for name, method in METHODS.items() if method.reads and not method.reads.keys() & PREDICTIONS
        )
        or_probe = '' if plain else 'teacher.labels to probe, or '
        raise UserError(
            f'method {config.method} compares predictions, but the teacher has no head to make any: set '
            f'{or_probe}{weights} to 0, or compare states with method {others}.'
        )
    if tuple(student_labels) == tuple(teacher_labels) or (not plain and config.teacher.labels != 'shared'):
        return
    cure = f'set teacher.labels to {" or ".join(METHODS[config.method].bridges[1:])}'
    if plain:
        cure = (
            f'the term {", ".join(plain)} reads them as they are, whatever teacher.labels says; give both '
            'models the same labels, or let the term compare what logits.bridge_logits gives'
        )
    raise UserError(
        f'method {config.method} compares predictions, but the teacher predicts {len(teacher_labels)} labels '
        f'({preview(teacher_labels)}) and the student {len(student_labels)} ({preview(student_labels)}): '
        f'{cure}.'
    )


def preview(labels) -> str:
    """The first few of some labels, for a person."""
    first = ', '.join(map(str, labels[:3]))
    return f'{first}, ...' if len(labels) > 3 else first
