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
DRAWS = 20_000
# Numbers that a bootstrap has in memory at once, about.
AT_ONCE = 4_000_000
# metric -> what becomes of the mean of the examples' values.
FINISH = {'rmse': np.sqrt, 'accuracy': np.asarray}
BETTER, NOT_SIGNIFICANT, WORSE = 'better', 'n.s.', 'worse'


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


class Bootstrap(NamedTuple):
    """The bounds of a bootstrap, and how far each may be from that of infinitely many draws."""

    low: float
    high: float
    low_error: float
    high_error: float

    def bounds(self) -> Interval:
        """Without their errors, as a person reads them."""
        return Interval(self.low, self.high)

    def outer(self) -> Interval:
        """Each moved outwards by its error: what is outside is so with any other draws, too."""
        return Interval(self.low - self.low_error, self.high + self.high_error)


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


class Compared(NamedTuple):
    """A method and what it is compared with in a bootstrap, of some seeds on one or more sets of examples."""

    pairs: list  # [sets] of (ours, baseline), Sums of the same seeds, in the same order
    clusters: list  # [seeds], what each belongs to
    shares: np.ndarray | None = None  # [sets] factors of the differences before they are added; None: a mean


def bootstrap_difference(ours: Sums, baseline: Sums, clusters, metric: str, draws=DRAWS, seed=0) -> Bootstrap:
    """`bootstrap_differences` of one method on one set of examples."""
    return bootstrap_differences([Compared([(ours, baseline)], clusters)], metric, draws, seed)[0]


def bootstrap_differences(compared, metric: str, draws=DRAWS, seed=0, same_units=True) -> list[Bootstrap]:
    """The percentile intervals of mean paired differences of a metric, over units and clusters of seeds.

    In each draw as many units as there are come with replacement, the same for all seeds of all methods, and
    independently as many clusters as there are, each with all of its seeds (the pigeonhole bootstrap, Owen
    2007). The statistic is the mean, over the seeds that came and over the sets of examples, of the
    difference of the metric of all the examples of the units that came; a draw that leaves a set without an
    example is no draw. So examples of one unit stay together, in all sets, as do seeds of one cluster. As any
    percentile interval, it is somewhat too narrow where there are few clusters, such as five; with one, it
    says nothing of others.

    Args:
      compared: what is compared, all on the same sets of examples. Sums that several have in common should be
        the same object: what becomes of them is computed once.
      metric: a name of FINISH.
      draws: how many.
      seed: of the draws; the same draws for all that have as many units and clusters.
      same_units: whether all sets have the same units, of which one may have no example in a set; else each
        set has its own, and they are drawn set by set.

    Returns:
      [compared], in their order.
    """
    if not compared:
        return []
    every_counts = [np.asarray(ours.counts, np.float64) for ours, _ in compared[0].pairs]
    for one in compared:
        _check_pairs(one, every_counts, same_units)
    # Of each set its Sums by id, each once, and all of them side by side, [units, their seeds].
    each = [{id(x): x for one in compared for x in one.pairs[place]} for place in range(len(every_counts))]
    joined = [np.concatenate([x.sums for x in of_set.values()]).astype(np.float64).T for of_set in each]
    columns = []
    for of_set in each:
        ends = np.cumsum([len(x.sums) for x in of_set.values()])
        columns.append(
            {key: slice(end - len(of_set[key].sums), end) for key, end in zip(of_set, ends, strict=True)}
        )
    clusters = [np.unique(one.clusters, return_inverse=True) for one in compared]
    of_units = [np.random.default_rng((seed, 0, place)) for place in range(len(each))]
    of_clusters = {len(names): np.random.default_rng((seed, 1)) for names, _ in clusters}
    found = [[] for _ in compared]
    at_once = max(1, AT_ONCE // max(map(len, every_counts)))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        weights = {count: _times_drawn(rng, count, size) for count, rng in of_clusters.items()}
        metrics, is_draw, times = [], True, None
        for rng, counts, sums in zip(of_units, every_counts, joined, strict=True):
            if times is None or not same_units:
                times = _times_drawn(rng, len(counts), size)  # [size, units]
            examples = (times @ counts)[:, None]
            metrics.append(FINISH[metric](times @ sums / np.maximum(examples, 1)))
            is_draw = is_draw & (examples[:, 0] > 0)
        for one, (names, cluster_of), kept in zip(compared, clusters, found, strict=True):
            shares = np.full(len(each), 1 / len(each)) if one.shares is None else one.shares
            differences = sum(
                share * (of_set[:, place[id(ours)]] - of_set[:, place[id(baseline)]])
                for share, of_set, place, (ours, baseline) in zip(
                    shares, metrics, columns, one.pairs, strict=True
                )
            )  # [size, seeds]
            times_seed = weights[len(names)][:, cluster_of]
            kept.append(((times_seed * differences).sum(axis=1) / times_seed.sum(axis=1))[is_draw])
    return [percentile_interval(np.concatenate(kept)) for kept in found]


def _check_pairs(compared, every_counts, same_units):
    """Refuses what cannot be paired."""
    num_seeds = len(compared.pairs[0][0].sums)
    for (ours, baseline), counts in zip(compared.pairs, every_counts, strict=True):
        shape = num_seeds, len(every_counts[0] if same_units else counts)
        if {ours.sums.shape, baseline.sums.shape} != {shape} or not all(
            np.array_equal(x.counts, counts) for x in (ours, baseline)
        ):
            raise ValueError('the seeds or the units of the two are not the same')
    if len(compared.clusters) != num_seeds:
        raise ValueError(f'{num_seeds} seeds have {len(compared.clusters)} clusters')


def percentile_interval(values) -> Bootstrap:
    """The middle 95% of the draws of a bootstrap, [draws], and the Monte-Carlo errors of its bounds.

    A bound's error is the longer way to the ends of its own 95% interval, which are order statistics: how
    many of n draws are below the true quantile p is binomial.
    """
    ordered, count = np.sort(values), len(values)
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    bounds, errors = [], []
    for p in tails:
        bound = np.quantile(ordered, p)
        low, high = scipy.stats.binom.ppf(tails, count, p)
        # The smallest has place 0.
        ends = ordered[[max(0, int(low) - 1), min(count - 1, int(high))]]
        bounds.append(float(bound))
        errors.append(float(np.abs(ends - bound).max()))
    return Bootstrap(*bounds, *errors)


def _times_drawn(rng, count, size):
    """[size, count] float64: how often each of `count` comes in `count` draws with replacement."""
    drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def verdict(intervals, less_is_better: bool) -> str:
    """What some 95% intervals of one difference to a baseline say: BETTER, NOT_SIGNIFICANT or WORSE.

    A method is better or worse only if all intervals exclude 0 on the same side.

    Args:
      intervals: of the difference, those of a bootstrap by `Bootstrap.outer`; without any, it is not
        significant.
      less_is_better: whether a negative difference is an improvement.
    """
    if intervals and all(interval.high < 0 for interval in intervals):
        return BETTER if less_is_better else WORSE
    if intervals and all(interval.low > 0 for interval in intervals):
        return WORSE if less_is_better else BETTER
    return NOT_SIGNIFICANT


def number(mean: float, spread: float | None = None, signed: bool = False, digits: int = 4) -> str:
    """A mean ± its spread, if it has one, as a person reads it."""
    text = f'{mean:+.{digits}f}' if signed else f'{mean:.{digits}f}'
    return text if spread is None else f'{text} ± {spread:.{digits}f}'


def written_p_value(value: float | None) -> str:
    """A p-value as a person reads it, '' where there is none."""
    if value is None:
        return ''
    return '< 0.0001' if value < 1e-4 else f'{value:.4f}'
