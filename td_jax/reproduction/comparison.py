"""A cell, or a row over several columns, beside a baseline: differences and their intervals."""

from typing import NamedTuple

import numpy as np

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reproduction import tables

# Metrics whose units, users, are the same people in every column of a table; images are of one data set each.
_OF_THE_SAME_UNITS = ('rmse',)


class Comparison(NamedTuple):
    """A result beside a baseline's."""

    mean: float  # the difference
    paired: statistics.Estimate | None  # None where their seeds are not the same
    bootstrap: statistics.Interval | None  # None where errors are missing, or are not of the same examples
    p_value: float | None  # of the paired t-test

    def verdict(self, less_is_better: bool) -> str:
        """What the intervals say, as statistics.verdict."""
        of_seeds = self.paired and self.paired.interval()
        return statistics.verdict(
            [interval for interval in (of_seeds, self.bootstrap) if interval] if of_seeds else [],
            less_is_better,
        )


def check_baseline(names, baseline: str | None):
    """Refuses a row that is to be the baseline of some tables, unless it is None.

    Raises:
      UserError: a table has no such row, or is made of others.
    """
    for name in names:
        if isinstance(tables.beside(name, baseline), tables.Derived) and baseline is not None:
            raise UserError(f'table {name} is made of others and has no --baseline; leave one of them out.')


def compare(result: dict, baseline: dict) -> Comparison:
    """A result less a baseline's."""
    mean = result['mean'] - baseline['mean']
    if result.get('seeds') != baseline['seeds']:
        return Comparison(mean, None, None, None)
    return _paired([(result, baseline)])


def of_the_same_seeds(result: dict, baseline: dict) -> tuple[dict, dict]:
    """Both, the baseline cut to the result's seeds where it has these and more."""
    ours, theirs = result.get('seeds'), baseline.get('seeds')
    if not ours or not theirs or ours == theirs or not set(ours) < set(theirs):
        return result, baseline
    places = [theirs.index(seed) for seed in ours]
    cut = {'seeds': ours, 'values': [baseline['values'][place] for place in places]}
    cut['mean'] = float(np.mean(cut['values']))
    if baseline.get('teachers'):
        cut['teachers'] = [baseline['teachers'][place] for place in places]
    if baseline.get('errors') is not None:
        cut['errors'] = {**baseline['errors'], 'sums': baseline['errors']['sums'][places]}
    return result, baseline | cut


def over_columns(pairs, shares=None) -> Comparison | None:
    """The mean over several columns of a row's results less their baselines'.

    Its t interval is over seeds, each with its mean over the columns; its bootstrap draws a user with his
    ratings of all columns, or the images of each data set.

    Args:
      pairs: [columns] of (result, baseline).
      shares: [columns], what each difference is multiplied by before they are added up; those of a mean, by
        default.

    Returns:
      None where their seeds are not the same in all.
    """
    seeds = [result.get('seeds') for pair in pairs for result in pair]
    if any(of_one is None or of_one != seeds[0] for of_one in seeds):
        return None
    return _paired(pairs, shares)


def _paired(pairs, shares=None):
    shares = np.full(len(pairs), 1 / len(pairs)) if shares is None else np.asarray(shares)
    ours, theirs = (shares @ [pair[side]['values'] for pair in pairs] for side in (0, 1))
    paired = statistics.paired_difference(ours, theirs)
    return Comparison(paired.mean, paired, _bootstrap(pairs, shares), statistics.paired_p_value(ours, theirs))


def _bootstrap(pairs, shares):
    errors = [[result.get('errors') for result in pair] for pair in pairs]
    for ours, theirs in errors:
        if ours is None or theirs is None:
            return None
        if any(not np.array_equal(ours[key], theirs[key]) for key in ('units', 'counts')):
            return None
    clusters = [_clusters(*pair) for pair in pairs]
    if any(of_one != clusters[0] for of_one in clusters):
        return None
    metric = pairs[0][0]['metric']
    if any(result['metric'] != metric for pair in pairs for result in pair):
        return None
    same_units = metric in _OF_THE_SAME_UNITS
    every = np.unique(np.concatenate([ours['units'] for ours, _ in errors]))
    sums = [
        [_spread(found, every if same_units else found['units']) for found in of_column]
        for of_column in errors
    ]
    return statistics.bootstrap_mean_difference(sums, clusters[0], metric, shares, same_units=same_units)


def _clusters(result, baseline):
    """What a seed of the two belongs to, [seeds]."""
    # A baseline without a teacher has none to say; those of one teacher are drawn as what differs, the seeds.
    for teachers in (result.get('teachers'), baseline.get('teachers')):
        if teachers and len(set(teachers)) > 1:
            return teachers
    return result['seeds']


def _spread(errors, units):
    """statistics.Sums of some units, in ascending order, from errors of all or some of them."""
    places = np.searchsorted(units, errors['units'])
    sums, counts = np.zeros((len(errors['sums']), len(units))), np.zeros(len(units))
    sums[:, places], counts[places] = errors['sums'], errors['counts']
    return statistics.Sums(sums, counts)
