"""The numbers of a row: its mean over seeds, and its difference to the run from scratch, seed by seed."""

from typing import NamedTuple

import numpy as np

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reporting.settings import Baseline, Row, Setting, baseline
from td_jax.reproduction import errors
from td_jax.training import evaluation, finished


class Compared(NamedTuple):
    """A row compared with its baseline."""

    row: Row
    own: statistics.Estimate | None  # None where no run is finished
    beside: Baseline
    paired: statistics.Estimate | None = None  # None where no seeds agree, or there is no baseline
    bootstrap: statistics.Bootstrap | None = None  # None where errors are missing or of other examples
    p_value: float | None = None  # of the paired t-test, by Holm over the rows of the setting
    verdict: str = ''  # of statistics.verdict, '' where there is nothing to compare
    remarks: tuple[str, ...] = ()


def of_setting(setting: Setting) -> list[Compared]:
    """The numbers of every row of a setting."""
    kept = {}
    found = [_of_row(row, setting, kept) for row in setting.rows]
    adjusted = statistics.holm([compared.p_value for compared in found])
    return [compared._replace(p_value=p) for compared, p in zip(found, adjusted, strict=True)]


def _of_row(row, setting, kept):
    values, beside = row.values(), baseline(row, setting.rows)
    own = statistics.of(list(values.values()), _clusters(row, list(values))) if values else None
    if not values or beside.row is None:
        return Compared(row, own, beside)
    others = beside.row.values()
    seeds = [seed for seed in values if seed in others]
    if not seeds:
        return Compared(row, own, beside)
    pair = [values[seed] for seed in seeds], [others[seed] for seed in seeds]
    clusters = statistics.joined_clusters(*(_clusters(side, seeds) for side in (row, beside.row)))
    paired = statistics.paired_difference(*pair, clusters)
    bootstrap, remarks = _bootstrap(row, beside.row, seeds, clusters, setting.metric, kept)
    less = evaluation.LESS_IS_BETTER.get(setting.metric)
    verdict = statistics.verdict(paired, bootstrap, less) if less is not None else ''
    p_value = statistics.paired_p_value(*pair, clusters)
    return Compared(row, own, beside, paired, bootstrap, p_value, verdict, remarks)


def _clusters(row, seeds):
    """What each of some seeds belongs to: its teacher where they have several, else itself."""
    teachers = row.teachers()
    taught_by = [teachers[seed] for seed in seeds]
    return taught_by if len(set(taught_by)) > 1 else seeds


def _bootstrap(row, other, seeds, clusters, metric, kept):
    """(interval or None, remarks) of the difference of some seeds."""
    if metric not in statistics.FINISH:
        return None, ()
    remarks, sides = [], []
    for side in (row, other):
        if side.label not in kept:
            kept[side.label] = _errors(side)
        sides.append(kept[side.label][0])
        remarks += kept[side.label][1] if side is row else ()
    if None in sides or not np.array_equal(sides[0][1], sides[1][1]):
        return None, tuple(remarks)
    summed = [
        errors.sum_by_unit(np.stack([of_seed[seed] for seed in seeds]), units) for of_seed, units in sides
    ]
    sums = [statistics.Sums(found['sums'], found['counts']) for found in summed]
    return statistics.bootstrap_difference(*sums, clusters, metric), tuple(remarks)


def _errors(row):
    """(({seed: [examples]}, units), remarks) of a row, (None, remarks) where its runs do not agree."""
    of_seed, units = {}, None
    for run in row.finished:
        try:
            found = finished.read_errors(run.folder)
        except UserError as error:
            return None, (str(error),)
        if found is None or (units is not None and not np.array_equal(found.units, units)):
            return None, ()
        units = found.units
        of_seed |= dict(zip(run.result['seeds'], found.values, strict=True))
    return (of_seed, units), ()
