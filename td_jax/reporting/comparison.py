"""Computes the mean of each row over seeds, and its paired difference to the run without distillation."""

from typing import NamedTuple

import numpy as np

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reporting.settings import Baseline, Row, Setting, find_baseline
from td_jax.reproduction import errors
from td_jax.training import evaluation, finished


class ComparedRow(NamedTuple):
    """A row compared with its baseline."""

    row: Row
    own: statistics.Estimate | None  # None if no run is finished
    baseline: Baseline
    paired: statistics.Estimate | None = None  # None without common seeds or a baseline
    bootstrap: statistics.Bootstrap | None = None  # None without errors of the same examples
    p_value: float | None = None  # of the paired t-test, with Holm's correction for the rows of the setting
    verdict: str = ''  # by statistics.verdict, '' without a comparison
    remarks: tuple[str, ...] = ()


def compare_setting(setting: Setting) -> list[ComparedRow]:
    """Compares every row of a setting with its baseline."""
    errors_by_row = {}
    compared_rows = [_compare_row(row, setting, errors_by_row) for row in setting.rows]
    adjusted = statistics.holm([compared.p_value for compared in compared_rows])
    return [compared._replace(p_value=p) for compared, p in zip(compared_rows, adjusted, strict=True)]


def _compare_row(row, setting, errors_by_row):
    values, baseline_row = row.values(), find_baseline(row, setting.rows)
    own = statistics.estimate_mean(list(values.values()), _clusters(row, list(values))) if values else None
    if not values or baseline_row.row is None:
        return ComparedRow(row, own, baseline_row)
    others = baseline_row.row.values()
    seeds = [seed for seed in values if seed in others]
    if not seeds:
        return ComparedRow(row, own, baseline_row)
    pair = [values[seed] for seed in seeds], [others[seed] for seed in seeds]
    clusters = statistics.join_clusters(*(_clusters(side, seeds) for side in (row, baseline_row.row)))
    paired = statistics.paired_difference(*pair, clusters)
    bootstrap, remarks = _bootstrap_difference(
        row, baseline_row.row, seeds, clusters, setting.metric, errors_by_row
    )
    less = evaluation.LESS_IS_BETTER.get(setting.metric)
    verdict = statistics.verdict(paired, bootstrap, less) if less is not None else ''
    p_value = statistics.paired_p_value(*pair, clusters)
    return ComparedRow(row, own, baseline_row, paired, bootstrap, p_value, verdict, remarks)


def _clusters(row, seeds):
    """The cluster of each seed: its teacher if there are several, else the seed itself."""
    teachers = row.teachers()
    teachers_of_seeds = [teachers[seed] for seed in seeds]
    return teachers_of_seeds if len(set(teachers_of_seeds)) > 1 else seeds


def _bootstrap_difference(row, other, seeds, clusters, metric, errors_by_row):
    """(bootstrap or None, remarks) of the difference over some seeds."""
    if metric not in statistics.FINISH:
        return None, ()
    remarks, sides = [], []
    for side in (row, other):
        if side.label not in errors_by_row:
            errors_by_row[side.label] = _read_errors(side)
        sides.append(errors_by_row[side.label][0])
        remarks += errors_by_row[side.label][1] if side is row else ()
    if None in sides or not np.array_equal(sides[0][1], sides[1][1]):
        return None, tuple(remarks)
    summed = [
        errors.sum_by_unit(np.stack([values_by_seed[seed] for seed in seeds]), units)
        for values_by_seed, units in sides
    ]
    sums = [statistics.Sums(unit_sums['sums'], unit_sums['counts']) for unit_sums in summed]
    return statistics.bootstrap_difference(*sums, clusters, metric), tuple(remarks)


def _read_errors(row):
    """(({seed: [examples]}, units), remarks) of a row; (None, remarks) if its runs do not agree."""
    values_by_seed, units = {}, None
    for run in row.finished:
        try:
            run_errors = finished.read_errors(run.folder)
        except UserError as error:
            return None, (str(error),)
        if run_errors is None or (units is not None and not np.array_equal(run_errors.units, units)):
            return None, ()
        units = run_errors.units
        values_by_seed |= dict(zip(run.result['seeds'], run_errors.values, strict=True))
    return (values_by_seed, units), ()
