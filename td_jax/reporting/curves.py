"""What the metrics of a row's runs say over the steps."""

from typing import NamedTuple

from td_jax.reporting.runs import is_number
from td_jax.reporting.settings import Row


class Curve(NamedTuple):
    """A number over steps, in their order."""

    label: str
    points: tuple[tuple[int, float], ...]  # (step, mean over the seeds)
    band: tuple[tuple[int, float, float], ...] = ()  # (step, lowest, highest seed)


def of_row(row: Row, name: str, label: str) -> Curve | None:
    """The mean of a metric over a row's seeds, at the steps that all runs with this metric have.

    Args:
      row: whose runs may be unfinished.
      name: of the metric.
      label: of the curve.

    Returns:
      A curve of finite numbers, its band from each seed's values where there are any; None without points
    """
    found = []
    for run in row.runs:
        of_run = {line['step']: line[name] for line in run.lines if is_number(line.get(name))}
        if of_run:
            seeds = len(run.result['seeds']) if run.result else run.stored.get('num_seeds', 1)
            found.append((of_run, seeds if isinstance(seeds, int) and seeds > 0 else 1))
    if not found:
        return None
    steps = sorted(set.intersection(*(set(of_run) for of_run, _ in found)))
    total = sum(count for _, count in found)
    points = tuple((step, sum(of_run[step] * count for of_run, count in found) / total) for step in steps)
    return Curve(label, points, _band(row, name, steps)) if points else None


def _band(row, name, steps):
    seeds = {}
    for run in row.runs:
        for line in run.lines:
            values = [v for key, v in line.items() if key.startswith(f'{name}/seed_') and is_number(v)]
            seeds.setdefault(line['step'], []).extend(values)
    return tuple((step, min(seeds[step]), max(seeds[step])) for step in steps if len(seeds.get(step, ())) > 1)


def terms(row: Row) -> list[str]:
    """The names of a row's loss terms that have a share, in the order of its metrics."""
    names = dict.fromkeys(name for run in row.runs for line in run.lines for name in line)
    return [name.removeprefix('share_') for name in names if name.startswith('share_')]
