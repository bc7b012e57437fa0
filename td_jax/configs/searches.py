"""The search spaces of hyperparameters as data: td_jax.tune and td_jax.compare draw from them.

A draw depends on the name of an option, not on its place here. With other ranges, the same trials have other
values, and a search starts anew.
"""

from typing import NamedTuple


class LogUniform(NamedTuple):
    """Log-uniform values from `low` to `high`."""

    low: float
    high: float

    def at(self, quantile: float) -> float:
        """The value at a quantile, rounded to six digits so that it is the same on every machine."""
        return float(f'{self.low * (self.high / self.low) ** quantile:.6g}')


class OneOf(NamedTuple):
    """Some values with equal probabilities."""

    values: tuple

    def at(self, quantile: float):
        """The value at a quantile in [0, 1)."""
        return self.values[int(quantile * len(self.values))]


# Searched for the teacher and the student without distillation; methods use the latter's choice.
OPTIMIZER = {
    'optimizer.learning_rate': LogUniform(1e-4, 3e-3),
    'optimizer.weight_decay': LogUniform(1e-2, 10.0),
    'model.dropout': OneOf((0.0, 0.2, 0.4)),
}
# The range of learning rates for SGD instead of AdamW.
SGD = {'optimizer.learning_rate': LogUniform(3e-3, 0.3)}
# Weights of images at reduced scale: larger ones of states cost accuracy there (docs/cifar.md).
WEIGHTS, IMAGE_WEIGHTS = LogUniform(0.1, 1000.0), LogUniform(0.01, 10.0)
# Weights of a comparison on any data, by its task. A cross-entropy is soon outweighed by distances of states.
WEIGHTS_BY_TASK = {'regression': WEIGHTS, 'classification': LogUniform(0.001, 100.0)}
# What a method has in addition to its weights.
OPTIONS = {'td': {'td.rounds': OneOf((0, 1, 2, 3))}}

# The genres of the paper's tables, and labelled images per class at reduced scale.
GENRES = ('Drama', 'Comedy', 'Action', 'Thriller', 'Romance', 'Adventure', 'Sci-Fi', 'War')
LABELLED = (50, 500)
# Labels per class with a public teacher, and how they are searched.
FEW_LABELS = (10, 50, 500)
_PUBLIC = {
    'task': 'classification',
    'columns': {str(count): {'dataset.examples_per_class': count} for count in FEW_LABELS},
    # The middle one alone, because each column takes hours.
    'score_columns': ('50',),
    'points': 3,
    'weights': WEIGHTS_BY_TASK['classification'],
}
# The modules of configs/ whose runs are short enough to be searched -> the fields of a tuning.SearchSpace.
SPACES = {
    'movielens': {
        'task': 'regression',
        'columns': {genre: {'dataset.genre': genre} for genre in GENRES},
        'score_columns': ('Drama', 'Adventure', 'War'),
        'points': 30,
        'weights': WEIGHTS,
    },
    'digits': {
        'task': 'classification',
        'columns': {'digits': {}},
        'score_columns': ('digits',),
        'points': 30,
        'weights': WEIGHTS_BY_TASK['classification'],
    },
    'vit_tiny_cifar10': {
        'task': 'classification',
        'columns': {str(count): {'dataset.examples_per_class': count} for count in LABELLED},
        'score_columns': tuple(map(str, LABELLED)),
        # Validation of images is expensive, so there are few.
        'points': 6,
        'weights': IMAGE_WEIGHTS,
    },
    # A student that is fine-tuned needs a lower learning rate.
    'public_vit_cifar10': _PUBLIC | {'optimizer': {'optimizer.learning_rate': LogUniform(1e-5, 1e-3)}},
    # Fixed views, as many as 600 steps of 32 labelled images show each of them.
    'public_cnn_cifar10': _PUBLIC
    | {
        'columns': {
            str(count): {'dataset.examples_per_class': count, 'teacher.views': -(-600 * 32 // (10 * count))}
            for count in FEW_LABELS
        }
    },
}

# Variant -> the methods that it joins, whose choices are its first trials.
STARTS = {'td_ld': ('td', 'ld')}
# The methods that are searched with other sampler seeds, unless methods are named.
MAIN = ('supervised', 'ld', 'td', 'td_ld')
# One of REDUCTION trials of a rung goes on to the next of RUNGS.
RUNGS, REDUCTION = 3, 2
# Draws are stratified: of this many consecutive trials, one is in each of as many equal parts of a range.
PARTS = 4
