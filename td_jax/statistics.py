"""What the numbers of some seeds say: their mean, between which bounds the true one lies, what is better.

A difference is paired: that of each seed to the same seed of the baseline, whose data order, training
examples and initial parameters are the same. Seeds that have something else in common, such as one
teacher of several students, are no independent ones: each such cluster counts once, by its mean. A difference
has two intervals, both two-sided at 95%:

- the t interval, mean ± t(0.975, n - 1) s / sqrt(n), with n clusters and s the standard deviation of their
  means: what other seeds, each with its teacher and its training examples, would give on the same test,
- a bootstrap, which draws the units of the examples (users, images) anew, and at the same time the clusters:
  what another test would give, too.

It is significant if both exclude 0. No interval is corrected for how many of them a table has; p-values are,
by Holm.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
# Both ends of a two-sided interval.
TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
# Of a bootstrap.
DRAWS = 20_000
# Numbers that a bootstrap has in memory at once, about.
AT_ONCE = 4_000_000
# Fewer clusters support no verdict: the t interval of two is 12.7 standard errors wide to each side.
FEWEST = 3
# Numbers that differ by a smaller part of themselves are the same: metrics come from sums in float32.
SAME = 1e-6
# metric -> what becomes of the mean of the examples' values, and its derivative.
FINISH = {'rmse': np.sqrt, 'accuracy': np.asarray}
DERIVATIVE = {'rmse': lambda mean: 0.5 / np.sqrt(np.maximum(mean, 1e-300)), 'accuracy': np.ones_like}
BETTER, NOT_SIGNIFICANT, WORSE = 'better', 'n.s.', 'worse'
# What supports no verdict.
TOO_FEW, NO_VARIANCE = 'too few seeds', 'no variance'


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float  # over the means of clusters
    # Of the 95% t interval. None where one cluster, or no pairing, tells no spread; 0 where all are the same,
    # so that there is no variance to tell one by.
    half_width: float | None
    count: int  # seeds
    clusters: int  # independent ones among them

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


class Compared(NamedTuple):
    """A method and what it is compared with in a bootstrap, of some seeds on one or more sets of examples."""

    pairs: list  # [sets] of (ours, baseline), Sums of the same seeds, in the same order
    clusters: list  # [seeds], what each belongs to
    shares: np.ndarray | None = None  # [sets] factors of the differences before they are added; None: a mean


def of(values, clusters=None) -> Estimate:
    """The mean of some seeds' values.

    Args:
      values: [seeds], one or more.
      clusters: [seeds], what each belongs to; by default each seed is one of its own.
    """
    return _estimate(values, np.abs(values).max(), clusters)


def paired_difference(values, baseline, clusters=None) -> Estimate:
    """The mean of the differences of the same seeds, with the interval of a paired t-test.

    Args:
      values, baseline: [seeds], in the same order.
      clusters: as of `of`.
    """
    return _estimate(np.subtract(values, baseline), np.abs([values, baseline]).max(), clusters)


def _estimate(values, scale, clusters):
    """Of [seeds] values that come from numbers as large as `scale`."""
    means = _cluster_means(values, clusters)
    half_width = None
    if len(means) > 1:
        half_width = 0.0
        if not _is_constant(means, scale):
            low, high = scipy.stats.ttest_1samp(means, 0.0).confidence_interval(CONFIDENCE)
            half_width = float(high - low) / 2
    return Estimate(float(means.mean()), half_width, len(np.asarray(values)), len(means))


def paired_p_value(values, baseline, clusters=None) -> float | None:
    """The two-sided p-value of a paired t-test; of the arguments of `paired_difference`.

    None where it would say nothing: of fewer clusters than FEWEST, or of differences that are all the same.
    """
    means = _cluster_means(np.subtract(values, baseline), clusters)
    if len(means) < FEWEST or _is_constant(means, np.abs([values, baseline]).max()):
        return None
    return float(scipy.stats.ttest_1samp(means, 0.0).pvalue)


def _cluster_means(values, clusters):
    values = np.asarray(values, np.float64)
    if clusters is None:
        return values
    cluster_of = _cluster_of(clusters, len(values))
    return np.bincount(cluster_of, values) / np.bincount(cluster_of)


def _cluster_of(clusters, num_seeds):
    """[seeds] numbers from 0, of names of what each seed belongs to."""
    if len(clusters) != num_seeds:
        raise ValueError(f'{num_seeds} seeds have {len(clusters)} clusters')
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _is_constant(values, scale):
    return bool(np.ptp(values) <= SAME * scale)


def joined_clusters(clusters, others) -> list[int]:
    """The finest clusters, [seeds], that have together whatever one of two ways to cut seeds has together.

    A student by one teacher is paired with one by another where two methods have different teachers.
    """
    names, first = list(range(len(clusters))), {}
    for way in (clusters, others):
        first.clear()
        for seed, cluster in enumerate(way):
            here, there = names[first.setdefault(cluster, seed)], names[seed]
            names = [here if name == there else name for name in names]
    return names


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


def bootstrap_difference(ours: Sums, baseline: Sums, clusters, metric: str, draws=DRAWS, seed=0) -> Bootstrap:
    """`bootstrap_differences` of one method on one set of examples."""
    return bootstrap_differences([Compared([(ours, baseline)], clusters)], metric, draws, seed)[0]


def bootstrap_differences(compared, metric: str, draws=DRAWS, seed=0, same_units=True) -> list[Bootstrap]:
    """The intervals of mean paired differences of a metric, over units of the examples and clusters of seeds.

    In each draw as many units as there are come with replacement, the same for all seeds of all methods, and
    independently as many clusters as there are, each with the mean of its seeds (the pigeonhole bootstrap,
    Owen 2007). The statistic is the mean, over the clusters that came and over the sets of examples, of the
    difference of the metric of all the examples of the units that came; a draw that leaves a set without an
    example is no draw. So examples of one unit stay together, in all sets, as do seeds of one cluster.

    A percentile interval is too narrow where there are few clusters, or where few units have most of the
    variance: by 10% for five clusters, and its tails are the normal's. So the way from the estimate to each
    percentile is multiplied by `widening`.

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
    clusters = [_membership(one.clusters) for one in compared]
    of_units = [np.random.default_rng((seed, 0, place)) for place in range(len(each))]
    of_clusters = {membership.shape[1]: np.random.default_rng((seed, 1)) for membership in clusters}
    found = [[] for _ in compared]
    at_once = max(1, AT_ONCE // max(map(len, every_counts)))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        weights = {count: _times_drawn(rng, count, size) / count for count, rng in of_clusters.items()}
        metrics, is_draw, times = [], True, None
        for rng, counts, sums in zip(of_units, every_counts, joined, strict=True):
            if times is None or not same_units:
                times = _times_drawn(rng, len(counts), size)  # [size, units]
            examples = (times @ counts)[:, None]
            metrics.append(FINISH[metric](times @ sums / np.maximum(examples, 1)))
            is_draw = is_draw & (examples[:, 0] > 0)
        for one, membership, kept in zip(compared, clusters, found, strict=True):
            differences = sum(
                share * (of_set[:, place[id(ours)]] - of_set[:, place[id(baseline)]])
                for share, of_set, place, (ours, baseline) in zip(
                    _shares(one), metrics, columns, one.pairs, strict=True
                )
            )  # [size, seeds]
            kept.append((weights[membership.shape[1]] * (differences @ membership)).sum(axis=1)[is_draw])
    return [
        _widened(percentile_interval(np.concatenate(kept)), *_center_and_widening(one, metric, same_units))
        for one, kept in zip(compared, found, strict=True)
    ]


def _check_pairs(compared, every_counts, same_units):
    """Refuses what cannot be paired."""
    num_seeds = len(compared.pairs[0][0].sums)
    for (ours, baseline), counts in zip(compared.pairs, every_counts, strict=True):
        shape = num_seeds, len(every_counts[0] if same_units else counts)
        if {ours.sums.shape, baseline.sums.shape} != {shape} or not all(
            np.array_equal(x.counts, counts) for x in (ours, baseline)
        ):
            raise ValueError('the seeds or the units of the two are not the same')
    _cluster_of(compared.clusters, num_seeds)


def _membership(clusters):
    """[seeds, clusters], with which differences of seeds become means of clusters."""
    cluster_of = _cluster_of(clusters, len(clusters))
    return np.eye(cluster_of.max() + 1)[cluster_of] / np.bincount(cluster_of)


def _shares(compared):
    count = len(compared.pairs)
    return np.full(count, 1 / count) if compared.shares is None else compared.shares


def percentile_interval(values) -> Bootstrap:
    """The middle 95% of the draws of a bootstrap, [draws], and the Monte-Carlo errors of its bounds.

    A bound's error is the longer way to the ends of its own 95% interval, which are order statistics: how
    many of n draws are below the true quantile p is binomial.
    """
    ordered = np.sort(values)
    bounds = np.quantile(ordered, TAILS)
    errors = np.abs(ordered[_places_around(len(values))] - bounds[:, None]).max(axis=1)
    return Bootstrap(*map(float, bounds), *map(float, errors))


@functools.cache
def _places_around(count):
    """[2, 2]: of both percentiles, which of so many ordered draws are the ends of its 95% interval."""
    low, high = scipy.stats.binom.ppf(np.array(TAILS)[:, None], count, TAILS)
    # The smallest has place 0.
    return np.clip(np.stack([low - 1, high], axis=1), 0, count - 1).astype(int)


def widening(cluster_values, influences) -> float:
    """How many times as far from the estimate as the percentiles of a bootstrap its bounds have to be.

    The variance of the estimate has a part of clusters, v_c, and a part of units, v_u. Each is known by few
    numbers: v_c by T - 1 degrees of freedom, v_u by 2 v² / var(v), which the fourth powers of the units'
    influences estimate, and which is small where few units have most of it. Their sum has the degrees of
    freedom of Satterthwaite (1946); the factor is t(0.975) of these over the normal's. A bootstrap draws from
    what is there, so that its variance is short of v by 1 - 1 / n in each part: the factor makes up for that.

    Args:
      cluster_values: [T], the estimate in each cluster.
      influences: [n], by how much the estimate moves with a unit's weight, of mean 0.
    """
    parts = []  # variance, degrees of freedom, its share in a bootstrap
    if (count := len(cluster_values)) > 1:
        parts.append((np.var(cluster_values, ddof=1) / count, count - 1, 1 - 1 / count))
    if (count := len(influences)) > 1:
        squares = influences**2
        spread = (squares**2).sum() - squares.sum() ** 2 / count
        freedom = 2 * squares.sum() ** 2 / spread if spread > 0 else np.inf
        parts.append((squares.sum() * count / (count - 1), min(freedom, count - 1), 1 - 1 / count))
    variance = sum(part for part, _, _ in parts)
    if not variance:
        return 1.0
    freedom = variance**2 / sum(part**2 / of_part for part, of_part, _ in parts)
    shortfall = sum(part * share for part, _, share in parts) / variance
    return float(scipy.stats.t.ppf(TAILS[1], freedom) / scipy.stats.norm.ppf(TAILS[1]) / np.sqrt(shortfall))


def _center_and_widening(compared, metric, same_units):
    """The difference itself, and `widening` of its interval."""
    membership = _membership(compared.clusters)
    of_seed, influences = 0.0, []  # [seeds]; of each set [seeds, units]
    for share, (ours, baseline) in zip(_shares(compared), compared.pairs, strict=True):
        counts, sides = np.asarray(ours.counts, np.float64), []
        for side in (ours, baseline):
            means = side.sums.sum(axis=1) / counts.sum()
            slopes = share * DERIVATIVE[metric](means) / counts.sum()
            sides.append(
                (share * FINISH[metric](means), slopes[:, None] * (side.sums - np.outer(means, counts)))
            )
        of_seed = of_seed + sides[0][0] - sides[1][0]
        influences.append(membership.mean(axis=1) @ (sides[0][1] - sides[1][1]))
    of_units = sum(influences) if same_units else np.concatenate(influences)
    of_clusters = of_seed @ membership
    return float(of_clusters.mean()), widening(of_clusters, of_units)


def _widened(interval, center, factor):
    low, high = (center + factor * (bound - center) for bound in interval.bounds())
    return Bootstrap(low, high, factor * interval.low_error, factor * interval.high_error)


def _times_drawn(rng, count, size):
    """[size, count] float64: how often each of `count` comes in `count` draws with replacement."""
    drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def verdict(paired: Estimate, bootstrap: Bootstrap | None, less_is_better: bool) -> str:
    """What a difference to a baseline says: BETTER, NOT_SIGNIFICANT or WORSE; or TOO_FEW or NO_VARIANCE.

    A method is better or worse only if the t interval and that of the bootstrap, where there is one, exclude
    0 on the same side, the latter by more than its Monte-Carlo error.

    Args:
      paired: the difference by seed.
      bootstrap: of it.
      less_is_better: whether a negative difference is an improvement.
    """
    if paired.clusters < FEWEST:
        return TOO_FEW
    if paired.half_width == 0:
        return NO_VARIANCE
    intervals = [paired.interval(), *([bootstrap.outer()] if bootstrap else [])]
    if all(interval.high < 0 for interval in intervals):
        return BETTER if less_is_better else WORSE
    if all(interval.low > 0 for interval in intervals):
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
