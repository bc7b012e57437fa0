"""Curves of a row's metrics over the steps."""

from typing import NamedTuple

from td_jax.reporting.runs import is_number
from td_jax.reporting.settings import Row


class Curve(NamedTuple):
    """A metric over steps, in order."""

    label: str
    points: tuple[tuple[int, float], ...]  # (step, mean over the seeds)
    band: tuple[tuple[int, float, float], ...] = ()  # (step, lowest, highest seed)


def mean_curve(row: Row, name: str, label: str) -> Curve | None:
    """Averages a metric over a row's seeds, at the steps that all runs with this metric have.

    Args:
      row: its runs may be unfinished.
      name: of the metric.
      label: of the curve.

    Returns:
      A curve of finite numbers, with a band if single seeds were logged; None without points
    """
    run_curves = []
    for run in row.runs:
        points_of_run = {line['step']: line[name] for line in run.lines if is_number(line.get(name))}
        if points_of_run:
            seeds = len(run.result['seeds']) if run.result else run.stored.get('num_seeds', 1)
            run_curves.append((points_of_run, seeds if isinstance(seeds, int) and seeds > 0 else 1))
    if not run_curves:
        return None
    steps = sorted(set.intersection(*(set(points_of_run) for points_of_run, _ in run_curves)))
    total = sum(count for _, count in run_curves)
    points = tuple(
        (step, sum(points_of_run[step] * count for points_of_run, count in run_curves) / total)
        for step in steps
    )
    return Curve(label, points, _band(row, name, steps)) if points else None


def _band(row, name, steps):
    seeds = {}
    for run in row.runs:
        for line in run.lines:
            values = [v for key, v in line.items() if key.startswith(f'{name}/seed_') and is_number(v)]
            seeds.setdefault(line['step'], []).extend(values)
    return tuple((step, min(seeds[step]), max(seeds[step])) for step in steps if len(seeds.get(step, ())) > 1)


def term_names(row: Row) -> list[str]:
    """The names of the loss terms whose shares are logged, in the order of the metrics."""
    names = dict.fromkeys(name for run in row.runs for line in run.lines for name in line)
    return [name.removeprefix('share_') for name in names if name.startswith('share_')]
