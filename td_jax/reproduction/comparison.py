"""A cell, or a row over several columns, compared with a baseline: differences and their intervals."""

from typing import NamedTuple

import numpy as np

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reproduction import tables

# Metrics whose units, users, are the same people in every column of a table; images are of one data set each.
_OF_THE_SAME_UNITS = ('rmse',)


class Comparison(NamedTuple):
    """A result compared with a baseline's."""

    mean: float  # the difference
    paired: statistics.Estimate | None  # None where their seeds are not the same
    bootstrap: statistics.Bootstrap | None  # None where errors are missing, or are not of the same examples
    p_value: float | None  # of the paired t-test; None where it would say nothing

    def verdict(self, less_is_better: bool) -> str:
        """What the intervals say, as statistics.verdict; of a difference that is not paired, nothing."""
        if self.paired is None:
            return statistics.NOT_SIGNIFICANT
        return statistics.verdict(self.paired, self.bootstrap, less_is_better)


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
    return compare_all({'': (result, baseline)})['']


def compare_all(pairs: dict) -> dict[str, Comparison]:
    """`compare` of each of {name: (result, baseline)}, whose bootstraps are made together."""
    paired = {
        name: ([(result, baseline)], None)
        for name, (result, baseline) in pairs.items()
        if result.get('seeds') == baseline['seeds']
    }
    found = _paired(paired)
    return {
        name: found.get(name) or Comparison(result['mean'] - baseline['mean'], None, None, None)
        for name, (result, baseline) in pairs.items()
    }


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
    """`rows_over_columns` of one row."""
    return rows_over_columns({'': (pairs, shares)})['']


def rows_over_columns(rows: dict) -> dict[str, Comparison | None]:
    """The mean over several columns of some rows' results less their baselines'.

    Its t interval is over seeds, each with its mean over the columns; its bootstrap draws a user with his
    ratings of all columns, or the images of each data set.

    Args:
      rows: {name: (pairs, shares)}: [columns] of (result, baseline), and [columns], what each difference is
        multiplied by before they are added up; None is a mean.

    Returns:
      {name: the comparison}, None where the seeds are not the same in all columns.
    """
    found = _paired({name: row for name, row in rows.items() if _are_of_the_same_seeds(row[0])})
    return {name: found.get(name) for name in rows}


def _are_of_the_same_seeds(pairs):
    seeds = [result.get('seeds') for pair in pairs for result in pair]
    return seeds[0] is not None and all(of_one == seeds[0] for of_one in seeds)


def _paired(rows):
    """{name: Comparison} of {name: (pairs, shares)}, whose seeds are the same."""
    bootstraps, found = _bootstraps(rows), {}
    for name, (pairs, shares) in rows.items():
        weights = np.full(len(pairs), 1 / len(pairs)) if shares is None else np.asarray(shares)
        ours, theirs = (weights @ [pair[side]['values'] for pair in pairs] for side in (0, 1))
        clusters = _clusters_of_all(pairs)
        paired = statistics.paired_difference(ours, theirs, clusters)
        p_value = statistics.paired_p_value(ours, theirs, clusters)
        found[name] = Comparison(paired.mean, paired, bootstraps.get(name), p_value)
    return found


def _bootstraps(rows):
    """{name: statistics.Bootstrap} of those of {name: (pairs, shares)} with errors of the same examples."""
    alike = {}
    for name, (pairs, _) in rows.items():
        if (key := _examples(pairs)) is not None:
            alike.setdefault(key, []).append(name)
    found = {}
    for (metric, *_), names in alike.items():
        same_units = metric in _OF_THE_SAME_UNITS
        of_columns = [ours['errors']['units'] for ours, _ in rows[names[0]][0]]
        every = np.unique(np.concatenate(of_columns))
        # By what they are of, so that what several rows have in common is one object.
        sums, compared = {}, []
        for name in names:
            pairs, shares = rows[name]
            for result in (result for pair in pairs for result in pair):
                errors = result['errors']
                if id(errors) not in sums:
                    sums[id(errors)] = _spread(errors, every if same_units else errors['units'])
            of_row = [tuple(sums[id(result['errors'])] for result in pair) for pair in pairs]
            compared.append(statistics.Compared(of_row, _clusters_of_all(pairs), shares))
        intervals = statistics.bootstrap_differences(compared, metric, same_units=same_units)
        found |= dict(zip(names, intervals, strict=True))
    return found


def _examples(pairs):
    """What says that two rows are of the same examples; None where a row's own are not, or have no errors."""
    metrics, key = {result.get('metric') for pair in pairs for result in pair}, []
    for pair in pairs:
        both = [result.get('errors') for result in pair]
        if None in both:
            return None
        of_both = [
            tuple(np.asarray(errors[part], np.int64).tobytes() for part in ('units', 'counts'))
            for errors in both
        ]
        if of_both[0] != of_both[1]:
            return None
        key.append(of_both[0])
    return None if len(metrics) > 1 else (*metrics, *key)


def clusters(result: dict) -> list:
    """What each seed of a result belongs to, [seeds]: its teacher where they have several, else itself."""
    teachers = result.get('teachers')
    return teachers if teachers and len(set(teachers)) > 1 else list(range(len(result['values'])))


def _clusters_of_all(pairs):
    """The same of several results with the same seeds: seeds that share a teacher in any of them are one."""
    found = clusters(pairs[0][0])
    for result in (result for pair in pairs for result in pair):
        found = statistics.joined_clusters(found, clusters(result))
    return found


def _spread(errors, units):
    """statistics.Sums of some units, in ascending order, from errors of all or some of them."""
    places = np.searchsorted(units, errors['units'])
    sums, counts = np.zeros((len(errors['sums']), len(units))), np.zeros(len(units))
    sums[:, places], counts[places] = errors['sums'], errors['counts']
    return statistics.Sums(sums, counts)
