"""Computes the mean of each row over seeds, and its paired difference to the run without distillation."""

from typing import NamedTuple

import numpy as np

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reporting.settings import Baseline, Row, Setting, find_baseline
from td_jax.reproduction import comparison, errors
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
    values, baseline = row.values(), find_baseline(row, setting.rows)
    own = None
    if values:
        result = _make_result(row, list(values))
        own = statistics.estimate_mean(result['values'], comparison.clusters(result))
    others = baseline.row.values() if baseline.row else {}
    seeds = [seed for seed in values if seed in others]
    if not seeds:
        return ComparedRow(row, own, baseline)
    results, remarks = [_make_result(side, seeds) for side in (row, baseline.row)], ()
    if setting.metric in statistics.FINISH:
        for side, result in zip((row, baseline.row), results, strict=True):
            if side.label not in errors_by_row:
                errors_by_row[side.label] = _read_errors(side)
            result |= {'metric': setting.metric, 'errors': _sum_errors(errors_by_row[side.label][0], seeds)}
        _, remarks = errors_by_row[row.label]
    difference, less = comparison.compare(*results), evaluation.LESS_IS_BETTER.get(setting.metric)
    verdict = '' if less is None else difference.verdict(less)
    return ComparedRow(row, own, baseline, *difference[1:], verdict, remarks)


def _make_result(row, seeds):
    """Some seeds of a row, as comparison.compare takes them; without errors."""
    values, teachers = row.values(), row.teachers()
    return {
        'seeds': seeds,
        'values': [values[seed] for seed in seeds],
        'teachers': [teachers[seed] for seed in seeds],
    }


def _sum_errors(row_errors, seeds):
    """The errors of some seeds by unit; None without errors."""
    if row_errors is None:
        return None
    values_by_seed, units = row_errors
    return errors.sum_by_unit(np.stack([values_by_seed[seed] for seed in seeds]), units)


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
