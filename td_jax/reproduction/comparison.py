"""Compares a cell, or a row over several columns, with a baseline: differences and their intervals."""

from typing import NamedTuple

import numpy as np

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reproduction import tables

# Metrics whose units, users, are the same people in every column of a table; images are of one data set each.
_METRICS_OF_SHARED_UNITS = ('rmse',)


class Comparison(NamedTuple):
    """A result compared with a baseline's."""

    mean: float  # the difference
    paired: statistics.Estimate | None  # None if the seeds differ
    bootstrap: statistics.Bootstrap | None  # None without errors of the same examples
    p_value: float | None  # of the paired t-test; None if undefined

    def verdict(self, less_is_better: bool) -> str:
        """The verdict by statistics.verdict; an unpaired difference is not significant."""
        if self.paired is None:
            return statistics.NOT_SIGNIFICANT
        return statistics.verdict(self.paired, self.bootstrap, less_is_better)


def check_baseline(names, baseline: str | None):
    """Refuses a baseline that some tables cannot have; None is always allowed.

    Raises:
      UserError: a table has no such row, or is a derived one.
    """
    for name in names:
        if isinstance(tables.with_baseline(name, baseline), tables.Derived) and baseline is not None:
            raise UserError(f'table {name} is made of others and has no --baseline; leave one of them out.')


def compare(result: dict, baseline: dict) -> Comparison:
    """Compares a result with a baseline."""
    return compare_all({'': (result, baseline)})['']


def compare_all(pairs: dict) -> dict[str, Comparison]:
    """Compares each of {name: (result, baseline)}; computes all bootstraps together."""
    paired_rows = {
        name: ([(result, baseline)], None)
        for name, (result, baseline) in pairs.items()
        if result.get('seeds') == baseline['seeds']
    }
    comparisons = _compare_paired(paired_rows)
    return {
        name: comparisons.get(name) or Comparison(result['mean'] - baseline['mean'], None, None, None)
        for name, (result, baseline) in pairs.items()
    }


def compare_column(table: tables.Table, rows: dict) -> dict[str, Comparison]:
    """Compares the rows of a column, {row: result or None}, with their baselines, if both have a result."""
    pairs = {row: (rows.get(row), rows.get(table.baseline_of(row))) for row in table.rows}
    return compare_all({row: pair for row, pair in pairs.items() if row != table.baseline and all(pair)})


def compare_means(table: tables.Table, columns: list[dict], names=None) -> dict[str, Comparison]:
    """Compares the means over columns, {row: result or None} each, of the rows that have runs in all of them.

    Args:
      table: its definition.
      columns: one or more.
      names: of the rows to compare; None for all.
    """
    pairs = {}
    for row in names or table.rows:
        of_columns = [(rows.get(row), rows.get(table.baseline_of(row))) for rows in columns]
        if row != table.baseline and all(is_run(result) for pair in of_columns for result in pair):
            pairs[row] = of_columns, None
    return {row: compared for row, compared in compare_rows_over_columns(pairs).items() if compared}


def is_run(result: dict | None) -> bool:
    """Whether a cell has runs; of a teacher only the mean is known."""
    return bool(result) and 'values' in result


def match_seeds(result: dict, baseline: dict) -> tuple[dict, dict]:
    """Cuts the baseline to the result's seeds if it has these and more; returns both."""
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


def compare_over_columns(pairs, shares=None) -> Comparison | None:
    """`compare_rows_over_columns` for a single row."""
    return compare_rows_over_columns({'': (pairs, shares)})['']


def compare_rows_over_columns(rows: dict) -> dict[str, Comparison | None]:
    """Compares rows with their baselines by the mean difference over several columns.

    The t interval is over the seeds' means over the columns. The bootstrap draws a user with all ratings of
    all columns, or the images of each data set.

    Args:
      rows: {name: (pairs, shares)}: [columns] of (result, baseline), and [columns] weights; None for the
        mean.

    Returns:
      {name: the comparison}, None if the seeds are not the same in all columns.
    """
    comparisons = _compare_paired({name: row for name, row in rows.items() if _have_same_seeds(row[0])})
    return {name: comparisons.get(name) for name in rows}


def _have_same_seeds(pairs):
    seeds = [result.get('seeds') for pair in pairs for result in pair]
    return seeds[0] is not None and all(of_one == seeds[0] for of_one in seeds)


def _compare_paired(rows):
    """{name: Comparison} of {name: (pairs, shares)}; all seeds must be the same."""
    bootstraps, comparisons = _bootstrap_rows(rows), {}
    for name, (pairs, shares) in rows.items():
        weights = np.full(len(pairs), 1 / len(pairs)) if shares is None else np.asarray(shares)
        ours, theirs = (weights @ [pair[side]['values'] for pair in pairs] for side in (0, 1))
        clusters = _join_clusters(pairs)
        paired = statistics.paired_difference(ours, theirs, clusters)
        p_value = statistics.paired_p_value(ours, theirs, clusters)
        comparisons[name] = Comparison(paired.mean, paired, bootstraps.get(name), p_value)
    return comparisons


def _bootstrap_rows(rows):
    """{name: statistics.Bootstrap} of the rows whose pairs have errors of the same examples."""
    rows_by_examples = {}
    for name, (pairs, _) in rows.items():
        if (key := _example_key(pairs)) is not None:
            rows_by_examples.setdefault(key, []).append(name)
    bootstraps = {}
    for (metric, *_), names in rows_by_examples.items():
        same_units = metric in _METRICS_OF_SHARED_UNITS
        of_columns = [ours['errors']['units'] for ours, _ in rows[names[0]][0]]
        all_units = np.unique(np.concatenate(of_columns))
        # Keyed by the errors, so that rows with a result in common share one object.
        sums, compared = {}, []
        for name in names:
            pairs, shares = rows[name]
            for result in (result for pair in pairs for result in pair):
                errors = result['errors']
                if id(errors) not in sums:
                    sums[id(errors)] = _spread_over_units(
                        errors, all_units if same_units else errors['units']
                    )
            of_row = [tuple(sums[id(result['errors'])] for result in pair) for pair in pairs]
            compared.append(statistics.ComparedPairs(of_row, _join_clusters(pairs), shares))
        intervals = statistics.bootstrap_differences(compared, metric, same_units=same_units)
        bootstraps |= dict(zip(names, intervals, strict=True))
    return bootstraps


def _example_key(pairs):
    """A key that is equal for rows on the same examples; None if a pair's examples differ or lack errors."""
    metrics, key = {result.get('metric') for pair in pairs for result in pair}, []
    for pair in pairs:
        both = [result.get('errors') for result in pair]
        if None in both:
            return None
        keys = [
            tuple(np.asarray(errors[part], np.int64).tobytes() for part in ('units', 'counts'))
            for errors in both
        ]
        if keys[0] != keys[1]:
            return None
        key.append(keys[0])
    return None if len(metrics) > 1 else (*metrics, *key)


def clusters(result: dict) -> list:
    """The cluster of each seed of a result, [seeds]: its teacher if there are several, else itself."""
    teachers = result.get('teachers')
    return teachers if teachers and len(set(teachers)) > 1 else list(range(len(result['values'])))


def _join_clusters(pairs):
    """Clusters over several results with the same seeds: seeds that share a teacher in any are joined."""
    joined = clusters(pairs[0][0])
    for result in (result for pair in pairs for result in pair):
        joined = statistics.join_clusters(joined, clusters(result))
    return joined


def _spread_over_units(errors, units):
    """statistics.Sums over `units`, in ascending order; units without errors have zeros."""
    places = np.searchsorted(units, errors['units'])
    sums, counts = np.zeros((len(errors['sums']), len(units))), np.zeros(len(units))
    sums[:, places], counts[places] = errors['sums'], errors['counts']
    return statistics.Sums(sums, counts)
