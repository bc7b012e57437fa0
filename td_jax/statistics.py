"""Means over seeds, their confidence intervals, and verdicts on differences.

A difference is paired: each seed is compared with the same seed of the baseline, which has the same order of
data, training examples and initial parameters. Seeds with something else in common, such as the same teacher,
are not independent: each such cluster counts once, by its mean. A difference has two intervals, both
two-sided at 95%:

- the t interval, mean ± t(0.975, n - 1) s / sqrt(n), with n clusters and s the standard deviation of their
  means: it is for other seeds, each with its teacher and its training examples, on the same test set,
- a bootstrap interval, which resamples the units of the examples (users, images) and the clusters at the same
  time: it is also for another test set.

A difference is significant if both exclude 0. Intervals are not corrected for the number of comparisons;
p-values have Holm's correction.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
# The quantiles at both ends of a two-sided interval.
TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
# Number of draws of a bootstrap.
DRAWS = 20_000
# Approximate limit of numbers that a bootstrap holds in memory.
NUMBERS_IN_MEMORY = 4_000_000
# Fewer clusters give no verdict: the half-width of the t interval of two is 12.7 standard errors.
FEWEST = 3
# Relative differences up to this count as zero, because metrics are sums in float32.
TOLERANCE = 1e-6
# Metric -> function of the mean of the examples' values, and its derivative.
FINISH = {'rmse': np.sqrt, 'accuracy': np.asarray}
DERIVATIVE = {'rmse': lambda mean: 0.5 / np.sqrt(np.maximum(mean, 1e-300)), 'accuracy': np.ones_like}
BETTER, NOT_SIGNIFICANT, WORSE = 'better', 'n.s.', 'worse'
# The reasons for no verdict.
TOO_FEW, NO_VARIANCE = 'too few seeds', 'no variance'


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float  # over the means of clusters
    # Of the 95% t interval; None for a single cluster, and 0 if all values are equal, so that there is no
    # estimate of the variance.
    half_width: float | None
    count: int  # seeds
    clusters: int  # independent ones among them

    def interval(self) -> 'Interval | None':
        """The bounds of the t interval, or None."""
        if self.half_width is None:
            return None
        return Interval(self.mean - self.half_width, self.mean + self.half_width)


class Interval(NamedTuple):
    """Two bounds."""

    low: float
    high: float


class Bootstrap(NamedTuple):
    """The bounds of a bootstrap interval, and their Monte-Carlo errors."""

    low: float
    high: float
    low_error: float
    high_error: float

    def bounds(self) -> Interval:
        """The bounds without their errors."""
        return Interval(self.low, self.high)

    def outer(self) -> Interval:
        """The bounds moved outwards by their errors."""
        return Interval(self.low - self.low_error, self.high + self.high_error)


class Sums(NamedTuple):
    """The values of examples summed by unit; units and counts are the same for all compared methods."""

    sums: np.ndarray  # [seeds, units]
    counts: np.ndarray  # [units], examples


class ComparedPairs(NamedTuple):
    """A method and its baseline in a bootstrap, over some seeds and one or more sets of examples."""

    pairs: list  # [sets] of (ours, baseline), Sums of the same seeds, in the same order
    clusters: list  # [seeds], the cluster of each
    shares: np.ndarray | None = None  # [sets] weights of the differences; None for the mean


def estimate_mean(values, clusters=None) -> Estimate:
    """Estimates the mean of some seeds' values.

    Args:
      values: [seeds], one or more.
      clusters: [seeds], the cluster of each; by default each seed is its own.
    """
    return _estimate(values, np.abs(values).max(), clusters)


def paired_difference(values, baseline, clusters=None) -> Estimate:
    """Estimates the mean difference of paired seeds, with the interval of a paired t-test.

    Args:
      values, baseline: [seeds], in the same order.
      clusters: as for `estimate_mean`.
    """
    return _estimate(np.subtract(values, baseline), np.abs([values, baseline]).max(), clusters)


def _estimate(values, scale, clusters):
    """Estimates the mean of [seeds] values that are differences of numbers up to `scale`."""
    means = _cluster_means(values, clusters)
    half_width = None
    if len(means) > 1:
        half_width = 0.0
        if not _is_constant(means, scale):
            low, high = scipy.stats.ttest_1samp(means, 0.0).confidence_interval(CONFIDENCE)
            half_width = float(high - low) / 2
    return Estimate(float(means.mean()), half_width, len(np.asarray(values)), len(means))


def paired_p_value(values, baseline, clusters=None) -> float | None:
    """The two-sided p-value of a paired t-test; arguments as for `paired_difference`.

    None for fewer clusters than FEWEST, or if all differences are equal.
    """
    means = _cluster_means(np.subtract(values, baseline), clusters)
    if len(means) < FEWEST or _is_constant(means, np.abs([values, baseline]).max()):
        return None
    return float(scipy.stats.ttest_1samp(means, 0.0).pvalue)


def _cluster_means(values, clusters):
    values = np.asarray(values, np.float64)
    if clusters is None:
        return values
    numbers = _number_clusters(clusters, len(values))
    return np.bincount(numbers, values) / np.bincount(numbers)


def _number_clusters(clusters, num_seeds):
    """Numbers the clusters of seeds from 0, [seeds]."""
    if len(clusters) != num_seeds:
        raise ValueError(f'{num_seeds} seeds have {len(clusters)} clusters')
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _is_constant(values, scale):
    return bool(np.ptp(values) <= TOLERANCE * scale)


def join_clusters(clusters, others) -> list[int]:
    """Joins two partitions of seeds into the finest clusters, [seeds], that contain the clusters of both.

    It is needed for pairs of methods with different teachers.
    """
    numbers, first = list(range(len(clusters))), {}
    for partition in (clusters, others):
        first.clear()
        for seed, cluster in enumerate(partition):
            target, merged = numbers[first.setdefault(cluster, seed)], numbers[seed]
            numbers = [target if number == merged else number for number in numbers]
    return numbers


def holm(p_values) -> list[float | None]:
    """Adjusts the p-values of a family of tests by Holm's correction (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; each is at least the one before, and
    at most 1. If those up to 0.05 are called significant, the probability of any false one is at most 5%, for
    any dependence of the tests.

    Args:
      p_values: [tests]; None is not part of the family and stays None.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    adjusted, largest = [None] * len(p_values), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def bootstrap_difference(ours: Sums, baseline: Sums, clusters, metric: str, draws=DRAWS, seed=0) -> Bootstrap:
    """`bootstrap_differences` for one method on one set of examples."""
    return bootstrap_differences([ComparedPairs([(ours, baseline)], clusters)], metric, draws, seed)[0]


def bootstrap_differences(compared, metric: str, draws=DRAWS, seed=0, same_units=True) -> list[Bootstrap]:
    """Computes bootstrap intervals of mean paired differences of a metric.

    Each draw resamples units with replacement, the same for all seeds and methods, and independently
    clusters, each with the mean of its seeds (the pigeonhole bootstrap, Owen 2007). The statistic is the mean
    difference of the metric on the examples of the drawn units, over the drawn clusters and the sets of
    examples. A draw that leaves a set without examples is dropped. Examples of one unit thus stay together in
    all sets, as do seeds of one cluster.

    A percentile interval is too narrow for few clusters, or if few units have most of the variance: by 10%
    for five clusters, and with the tails of the normal distribution. The distance of each percentile from the
    estimate is therefore multiplied by `widening_factor`.

    Args:
      compared: ComparedPairs on the same sets of examples. Sums in common should be the same object, so that
        they are computed once.
      metric: a name of FINISH.
      draws: their number.
      seed: of the draws, which are the same for equal numbers of units and clusters.
      same_units: whether all sets have the same units, some of which may have no example in a set; else the
        units of each set are drawn independently.

    Returns:
      the intervals in the order of `compared`
    """
    if not compared:
        return []
    counts_of_sets = [np.asarray(ours.counts, np.float64) for ours, _ in compared[0].pairs]
    for method in compared:
        _check_pairs(method, counts_of_sets, same_units)
    # For each set, its distinct Sums by id, and all of them side by side, [units, seeds of all].
    sums_of_sets = [
        {id(x): x for method in compared for x in method.pairs[position]}
        for position in range(len(counts_of_sets))
    ]
    stacked_sums = [
        np.concatenate([x.sums for x in set_sums.values()]).astype(np.float64).T for set_sums in sums_of_sets
    ]
    columns_of_sets = []
    for set_sums in sums_of_sets:
        ends = np.cumsum([len(x.sums) for x in set_sums.values()])
        columns_of_sets.append(
            {key: slice(end - len(set_sums[key].sums), end) for key, end in zip(set_sums, ends, strict=True)}
        )
    clusters = [_averaging_matrix(method.clusters) for method in compared]
    unit_generators = [np.random.default_rng((seed, 0, position)) for position in range(len(sums_of_sets))]
    cluster_generators = {membership.shape[1]: np.random.default_rng((seed, 1)) for membership in clusters}
    draws_of_methods = [[] for _ in compared]
    batch_size = max(1, NUMBERS_IN_MEMORY // max(map(len, counts_of_sets)))
    for start in range(0, draws, batch_size):
        size = min(batch_size, draws - start)
        weights = {
            count: _draw_multiplicities(rng, count, size) / count for count, rng in cluster_generators.items()
        }
        metrics, is_valid, multiplicities = [], True, None
        for rng, counts, sums in zip(unit_generators, counts_of_sets, stacked_sums, strict=True):
            if multiplicities is None or not same_units:
                multiplicities = _draw_multiplicities(rng, len(counts), size)  # [size, units]
            examples = (multiplicities @ counts)[:, None]
            metrics.append(FINISH[metric](multiplicities @ sums / np.maximum(examples, 1)))
            is_valid = is_valid & (examples[:, 0] > 0)
        for method, membership, method_draws in zip(compared, clusters, draws_of_methods, strict=True):
            differences = sum(
                share * (values[:, columns[id(ours)]] - values[:, columns[id(baseline)]])
                for share, values, columns, (ours, baseline) in zip(
                    _get_shares(method), metrics, columns_of_sets, method.pairs, strict=True
                )
            )  # [size, seeds]
            method_draws.append(
                (weights[membership.shape[1]] * (differences @ membership)).sum(axis=1)[is_valid]
            )
    return [
        _widen(
            percentile_interval(np.concatenate(method_draws)),
            *_compute_center_and_factor(method, metric, same_units),
        )
        for method, method_draws in zip(compared, draws_of_methods, strict=True)
    ]


def _check_pairs(compared, counts_of_sets, same_units):
    """Refuses Sums that cannot be paired."""
    num_seeds = len(compared.pairs[0][0].sums)
    for (ours, baseline), counts in zip(compared.pairs, counts_of_sets, strict=True):
        shape = num_seeds, len(counts_of_sets[0] if same_units else counts)
        if {ours.sums.shape, baseline.sums.shape} != {shape} or not all(
            np.array_equal(x.counts, counts) for x in (ours, baseline)
        ):
            raise ValueError('the seeds or the units of the two are not the same')
    _number_clusters(compared.clusters, num_seeds)


def _averaging_matrix(clusters):
    """The matrix [seeds, clusters] that averages values of seeds over clusters."""
    numbers = _number_clusters(clusters, len(clusters))
    return np.eye(numbers.max() + 1)[numbers] / np.bincount(numbers)


def _get_shares(compared):
    count = len(compared.pairs)
    return np.full(count, 1 / count) if compared.shares is None else compared.shares


def percentile_interval(values) -> Bootstrap:
    """The middle 95% of bootstrap draws, [draws], and the Monte-Carlo errors of its bounds.

    The error of a bound is its larger distance to the ends of its own 95% interval. These are order
    statistics, because the number of draws below the true quantile is binomial.
    """
    ordered = np.sort(values)
    bounds = np.quantile(ordered, TAILS)
    errors = np.abs(ordered[_find_error_places(len(values))] - bounds[:, None]).max(axis=1)
    return Bootstrap(*map(float, bounds), *map(float, errors))


@functools.cache
def _find_error_places(count):
    """The indices, [2, 2], of the ordered draws that end the 95% intervals of both percentiles."""
    low, high = scipy.stats.binom.ppf(np.array(TAILS)[:, None], count, TAILS)
    # Indices start at 0.
    return np.clip(np.stack([low - 1, high], axis=1), 0, count - 1).astype(int)


def widening_factor(cluster_values, influences) -> float:
    """The factor by which a percentile interval has to be widened.

    The variance v of the estimate is the sum of a part of clusters, v_c, and a part of units, v_u. Their
    degrees of freedom are T - 1 for v_c, and 2 v_u² / var(v_u) for v_u, estimated from the fourth powers of
    the units' influences; it is small if few units have most of the variance. The sum has the degrees of
    freedom of Satterthwaite (1946); the factor is t(0.975) for these over that of the normal distribution.
    The variance of a bootstrap is too small by 1 - 1 / n in each part, for which the factor corrects.

    Args:
      cluster_values: [T], the estimate in each cluster.
      influences: [n], the derivatives of the estimate by the units' weights, of mean 0.
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
    freedom = variance**2 / sum(part**2 / part_freedom for part, part_freedom, _ in parts)
    shortfall = sum(part * share for part, _, share in parts) / variance
    return float(scipy.stats.t.ppf(TAILS[1], freedom) / scipy.stats.norm.ppf(TAILS[1]) / np.sqrt(shortfall))


def _compute_center_and_factor(compared, metric, same_units):
    """The difference and the `widening_factor` of its interval."""
    membership = _averaging_matrix(compared.clusters)
    differences, influences = 0.0, []  # [seeds]; of each set [seeds, units]
    for share, (ours, baseline) in zip(_get_shares(compared), compared.pairs, strict=True):
        counts, sides = np.asarray(ours.counts, np.float64), []
        for side in (ours, baseline):
            means = side.sums.sum(axis=1) / counts.sum()
            slopes = share * DERIVATIVE[metric](means) / counts.sum()
            sides.append(
                (share * FINISH[metric](means), slopes[:, None] * (side.sums - np.outer(means, counts)))
            )
        differences = differences + sides[0][0] - sides[1][0]
        influences.append(membership.mean(axis=1) @ (sides[0][1] - sides[1][1]))
    unit_influences = sum(influences) if same_units else np.concatenate(influences)
    cluster_values = differences @ membership
    return float(cluster_values.mean()), widening_factor(cluster_values, unit_influences)


def _widen(interval, center, factor):
    low, high = (center + factor * (bound - center) for bound in interval.bounds())
    return Bootstrap(low, high, factor * interval.low_error, factor * interval.high_error)


def _draw_multiplicities(rng, count, size):
    """Draws `count` of `count` with replacement, `size` times: multiplicities [size, count], float64."""
    indices = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(indices.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def verdict(paired: Estimate, bootstrap: Bootstrap | None, less_is_better: bool) -> str:
    """The verdict on a difference: BETTER, NOT_SIGNIFICANT or WORSE; or TOO_FEW or NO_VARIANCE.

    A method is better or worse only if the t interval and the bootstrap interval, if any, exclude 0 on the
    same side, the latter by more than its Monte-Carlo error.

    Args:
      paired: the paired difference.
      bootstrap: its bootstrap interval, or None.
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


def format_number(mean: float, spread: float | None = None, signed: bool = False, digits: int = 4) -> str:
    """Formats a mean ± its spread, if any."""
    text = f'{mean:+.{digits}f}' if signed else f'{mean:.{digits}f}'
    return text if spread is None else f'{text} ± {spread:.{digits}f}'


def format_p_value(value: float | None) -> str:
    """Formats a p-value; '' for None."""
    if value is None:
        return ''
    return '< 0.0001' if value < 1e-4 else f'{value:.4f}'
