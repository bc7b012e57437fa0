"""What the numbers of some seeds say: their mean, between which bounds the true one lies, what is better.

A difference is paired: that of each seed to the same seed of the baseline, whose data order and initial
parameters are the same. It has two intervals, both two-sided at 95%:

- the t interval, mean ± t(0.975, n - 1) s / sqrt(n), with n seeds and s their standard deviation: what
  another draw of seeds would give on the same examples,
- a percentile bootstrap, which draws the units of the examples (users, images) anew, and at the same time
  the clusters of seeds (those of one teacher): what other users and other teachers would give.

No interval is corrected for how many of them a table has; p-values are, by Holm.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
# Of a bootstrap.
DRAWS = 2000
# Numbers that a bootstrap has in memory at once, about.
AT_ONCE = 4_000_000
# metric -> what becomes of the mean of the examples' values.
FINISH = {'rmse': np.sqrt, 'accuracy': np.asarray}
BETTER, TIED, WORSE = 'better', 'not told apart', 'worse'


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    half_width: float | None  # of the 95% t interval; None where one value, or no pairing, tells no spread
    count: int  # seeds

    def interval(self) -> 'Interval | None':
        """The bounds of the t interval, None where there is none."""
        if self.half_width is None:
            return None
        return Interval(self.mean - self.half_width, self.mean + self.half_width)


class Interval(NamedTuple):
    """Two bounds."""

    low: float
    high: float


class Sums(NamedTuple):
    """The values of examples, added up by unit; the same units and counts for all that is compared."""

    sums: np.ndarray  # [seeds, units]
    counts: np.ndarray  # [units], examples


def of(values) -> Estimate:
    """The mean of some seeds' values, [n] with n >= 1."""
    values = np.asarray(values, np.float64)
    count, half_width = len(values), None
    if count > 1:
        stderr = values.std(ddof=1) / np.sqrt(count)
        half_width = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stderr)
    return Estimate(float(values.mean()), half_width, count)


def paired_difference(values, baseline) -> Estimate:
    """The mean of the differences of the same seeds, [n] less [n], with the interval of a paired t-test."""
    return of(np.subtract(values, baseline))


def paired_p_value(values, baseline) -> float | None:
    """The two-sided p-value of a paired t-test of the same seeds, [n] and [n]; None of one seed.

    Where all differences are the same, it is 1 if they are 0, else 0.
    """
    differences = np.subtract(values, baseline, dtype=np.float64)
    count = len(differences)
    if count < 2:
        return None
    mean, stderr = differences.mean(), differences.std(ddof=1) / np.sqrt(count)
    if stderr == 0:
        return float(mean == 0)
    return float(2 * scipy.stats.t.sf(abs(mean) / stderr, count - 1))


def holm(p_values) -> list[float | None]:
    """Holm's adjusted p-values of a family of tests (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is less than the one before, and
    none more than 1. Those that are at most 0.05 may all be called significant, with a chance of 5% at most
    that any of them is so by mere luck, however the tests depend on each other.

    Args:
      p_values: [tests]; None is a test that was not made, which is no part of the family and stays None.
    """
    made = [i for i, p in enumerate(p_values) if p is not None]
    adjusted, largest = [None] * len(p_values), 0.0
    for rank, i in enumerate(sorted(made, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(made) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def bootstrap_difference(ours: Sums, baseline: Sums, clusters, metric: str, draws=DRAWS, seed=0) -> Interval:
    """`bootstrap_mean_difference` of one set of examples."""
    return bootstrap_mean_difference([(ours, baseline)], clusters, metric, draws=draws, seed=seed)


def bootstrap_mean_difference(
    pairs, clusters, metric: str, shares=None, draws=DRAWS, seed=0, same_units=True
) -> Interval:
    """The percentile interval of the mean paired difference of a metric, over units and clusters of seeds.

    In each draw as many units as there are come with replacement, the same for all seeds of both methods, and
    independently as many clusters as there are, each with all of its seeds (the pigeonhole bootstrap, Owen
    2007). The statistic is the mean, over the seeds that came and over the sets of examples, of the
    difference of the metric of all the examples of the units that came; a draw that leaves a set without an
    example is no draw. So examples of one unit stay together, in all sets, as do seeds of one cluster. As any
    percentile interval, it is somewhat too narrow where there are few clusters, such as five; with one, it
    says nothing of others.

    Args:
      pairs: (ours, baseline), Sums of each set of examples; all of the same seeds, in the same order.
      clusters: [seeds], what each belongs to.
      metric: a name of FINISH.
      shares: [sets], what the difference in each is multiplied by before they are added up; those of a mean,
        by default.
      draws: how many.
      seed: of the draws; the same draws for all that have as many units and clusters.
      same_units: whether all sets have the same units, of which one may have no example in a set; else each
        set has its own, and they are drawn set by set.
    """
    num_seeds, num_units = pairs[0][0].sums.shape
    for ours, baseline in pairs:
        shape = num_seeds, num_units if same_units else len(ours.counts)
        if {ours.sums.shape, baseline.sums.shape} != {shape} or not np.array_equal(
            ours.counts, baseline.counts
        ):
            raise ValueError('the seeds or the units of the two are not the same')
    names, cluster_of = np.unique(clusters, return_inverse=True)
    if len(cluster_of) != num_seeds:
        raise ValueError(f'{num_seeds} seeds have {len(cluster_of)} clusters')
    finish = FINISH[metric]
    shares = np.full(len(pairs), 1 / len(pairs)) if shares is None else shares
    # Of each set [units, 2 * seeds] and [units].
    sets = [
        (np.concatenate([ours.sums, baseline.sums]).astype(np.float64).T, np.asarray(ours.counts, np.float64))
        for ours, baseline in pairs
    ]
    of_units, of_clusters = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    found = []
    at_once = max(1, AT_ONCE // num_units)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        weights = _times_drawn(of_clusters, len(names), size)[:, cluster_of]  # [size, seeds]
        differences, is_draw, times = 0.0, True, None
        for (both, counts), share in zip(sets, shares, strict=True):
            if times is None or not same_units:
                times = _times_drawn(of_units, len(counts), size)  # [size, units]
            examples = (times @ counts)[:, None]
            metrics = finish(times @ both / np.maximum(examples, 1))  # [size, 2 * seeds]
            differences = differences + share * (metrics[:, :num_seeds] - metrics[:, num_seeds:])
            is_draw = is_draw & (examples[:, 0] > 0)
        found.append(((weights * differences).sum(axis=1) / weights.sum(axis=1))[is_draw])
    tail = 100 * (1 - CONFIDENCE) / 2
    return Interval(*map(float, np.percentile(np.concatenate(found), [tail, 100 - tail])))


def _times_drawn(rng, count, size):
    """[size, count] float64: how often each of `count` comes in `count` draws with replacement."""
    drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def verdict(intervals, less_is_better: bool) -> str:
    """What some 95% intervals of one difference to a baseline say together: BETTER, TIED or WORSE.

    A method is better or worse only if no interval holds 0 and all are on one side of it.

    Args:
      intervals: of the difference; without any, nothing is told apart.
      less_is_better: whether a negative difference is an improvement.
    """
    if intervals and all(interval.high < 0 for interval in intervals):
        return BETTER if less_is_better else WORSE
    if intervals and all(interval.low > 0 for interval in intervals):
        return WORSE if less_is_better else BETTER
    return TIED


def number(mean: float, spread: float | None = None, signed: bool = False, digits: int = 4) -> str:
    """A mean ± its spread, if it has one, as a person reads it."""
    text = f'{mean:+.{digits}f}' if signed else f'{mean:.{digits}f}'
    return text if spread is None else f'{text} ± {spread:.{digits}f}'


def written_p_value(value: float | None) -> str:
    """A p-value as a person reads it, '' where there is none."""
    if value is None:
        return ''
    return '< 0.0001' if value < 1e-4 else f'{value:.4f}'
