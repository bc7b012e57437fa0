"""Intervals against SciPy's tests, and by hand."""

import inspect
import math

import numpy as np
import pytest
import scipy.stats

from td_jax import statistics
from td_jax.training import evaluation


@pytest.mark.parametrize('count', [2, 3, 5, 20])
def test_an_interval_is_that_of_a_t_test(count):
    values = np.random.default_rng(count).normal(size=count)
    estimate = statistics.estimate_mean(values)
    low, high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx(
        (low, high)
    )
    assert estimate.count == count


@pytest.mark.parametrize('count', [2, 3, 5, 20])
def test_a_difference_has_the_interval_of_a_paired_t_test(count):
    ours, theirs = np.random.default_rng(count).normal(size=(2, count))
    estimate = statistics.paired_difference(ours, theirs)
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx(
        (low, high)
    )


def test_three_seeds_by_hand():
    """1, 2 and 3: s is 1, t(0.975) of two degrees of freedom 4.303, and 4.303 / sqrt(3) is 2.484."""
    assert statistics.estimate_mean([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.484, abs=5e-4), 3, 3)


def test_one_value_has_no_interval_and_equal_ones_have_one_of_no_width():
    assert statistics.estimate_mean([0.5]) == (0.5, None, 1, 1)
    assert statistics.estimate_mean([0.5, 0.5, 0.5]) == (0.5, 0.0, 3, 3)


@pytest.mark.parametrize('clusters', [[7, 3, 7, 3, 5, 5], [0, 0, 0, 1, 2, 2]])
def test_seeds_of_one_cluster_count_once(clusters):
    """The interval and p-value of SciPy's paired t-test on the teachers' means, also for unequal clusters."""
    ours, theirs = np.random.default_rng(3).normal(size=(2, 6))
    of_teachers = [
        [np.mean([side[i] for i in range(6) if clusters[i] == name]) for name in sorted(set(clusters))]
        for side in (ours, theirs)
    ]
    estimate = statistics.paired_difference(ours, theirs, clusters)
    expected = scipy.stats.ttest_rel(*of_teachers)
    assert (estimate.count, estimate.clusters) == (6, 3)
    assert estimate.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert statistics.paired_p_value(ours, theirs, clusters) == pytest.approx(expected.pvalue)
    own = statistics.estimate_mean(ours, clusters)
    expected = scipy.stats.ttest_1samp(of_teachers[0], 0)
    assert own.interval() == pytest.approx(tuple(expected.confidence_interval()))
    with pytest.raises(ValueError, match='6 seeds have 3 clusters'):
        statistics.estimate_mean(ours, clusters[:3])


def test_clusters_of_two_methods_are_joined():
    join = statistics.join_clusters
    assert len(set(join([0, 1, 2, 3], [5, 6, 7, 8]))) == 4
    # Students 0 and 2 share a teacher in one clustering, 2 and 3 in the other.
    first, second, third, fourth = join(['a', 'b', 'a', 'c'], [0, 1, 2, 2])
    assert first == third == fourth != second
    assert len(set(join([0, 1, 0, 1], [0, 1, 1, 0]))) == 1


def test_other_numbers_of_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match='shape'):
        statistics.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


# --- p-values --------------------------------------------------------------------------------------


@pytest.mark.parametrize('count', [3, 5, 20])
def test_a_p_value_is_that_of_a_paired_t_test(count):
    ours, theirs = np.random.default_rng(count).normal(size=(2, count))
    assert statistics.paired_p_value(ours, theirs) == pytest.approx(
        scipy.stats.ttest_rel(ours, theirs).pvalue
    )


def test_too_few_seeds_or_equal_differences_have_no_p_value():
    assert statistics.paired_p_value([1.0], [2.0]) is None
    # Never with two seeds: equal differences would give p < 0.0001.
    assert statistics.paired_p_value([1.5, 2.5], [1.0, 2.0]) is None
    assert statistics.paired_p_value([1.5, 2.7], [1.0, 2.0]) is None
    # Six seeds of two teachers are two.
    assert statistics.paired_p_value(np.arange(6) ** 2.0, np.arange(6), [0, 1] * 3) is None
    for shift in (0.0, 0.1):
        # Each plus 0.1, which in binary is not the same difference for all.
        ours, theirs = np.array([0.3, 0.7, 1.1]) + shift, [0.3, 0.7, 1.1]
        assert statistics.paired_p_value(ours, theirs) is None
        estimate = statistics.paired_difference(ours, theirs)
        assert estimate == (pytest.approx(shift), 0.0, 3, 3)
        assert statistics.verdict(estimate, None, True) == statistics.NO_VARIANCE


@pytest.mark.parametrize(
    ('p_values', 'expected'),
    [
        ([0.04], [0.04]),
        # 3 * 0.01; 2 * 0.02; 0.03, but at least the one before.
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        # In any order. 4 * 0.005, 3 * 0.011, 2 * 0.02, 0.04.
        ([0.02, 0.005, 0.04, 0.011], [0.04, 0.02, 0.04, 0.033]),
        ([0.6, 0.5], [1.0, 1.0]),
        # Comparisons without a p-value are not part of the family: 2 * 0.01.
        ([None, 0.01, 0.2, None], [None, 0.02, 0.2, None]),
        ([0.01, 0.01], [0.02, 0.02]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    assert statistics.holm(p_values) == [e if e is None else pytest.approx(e) for e in expected]


# --- The bootstrap ---------------------------------------------------------------------------------


def draw_sums(seeds, units, metric='rmse', key=0):
    """Sums and counts of two methods with similar values."""
    rng = np.random.default_rng(key)
    counts = rng.integers(1, 7, units)
    if metric == 'accuracy':
        baseline = rng.binomial(counts, 0.7, (seeds, units)).astype(float)
        ours = np.minimum(baseline + rng.binomial(1, 0.1, (seeds, units)), counts)
    else:
        baseline = rng.gamma(counts, 1.0, (seeds, units))
        ours = baseline * rng.uniform(0.8, 1.1, (seeds, units))
    return statistics.Sums(ours, counts), statistics.Sums(baseline, counts)


def pool(metric, sums, counts):
    mean = np.sum(sums) / np.sum(counts)
    return math.sqrt(mean) if metric == 'rmse' else mean


@pytest.mark.parametrize('metric', ['rmse', 'accuracy'])
def test_a_bootstrap_of_one_cluster_is_scipys(metric, unwidened):
    """With the same draws. SciPy resamples tuples of paired units and has no clusters, so there is one."""
    ours, baseline = draw_sums(3, 41, metric)

    def difference(*columns, axis):
        *sums, counts = columns
        metrics = [np.sum(s, axis) / np.sum(counts, axis) for s in sums]
        metrics = [np.sqrt(m) if metric == 'rmse' else m for m in metrics]
        return sum(metrics[:3]) / 3 - sum(metrics[3:]) / 3

    rng = np.random.default_rng((5, 0, 0))
    expected = scipy.stats.bootstrap(
        (*ours.sums, *baseline.sums, ours.counts),
        difference,
        paired=True,
        vectorized=True,
        method='percentile',
        n_resamples=500,
        # The argument has another name in older versions of SciPy.
        **{'rng' if 'rng' in inspect.signature(scipy.stats.bootstrap).parameters else 'random_state': rng},
    ).confidence_interval
    bootstrap = statistics.bootstrap_difference(ours, baseline, [7, 7, 7], metric, draws=500, seed=5)
    assert bootstrap[:2] == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert bootstrap.low < bootstrap.high


@pytest.mark.parametrize('metric', ['rmse', 'accuracy'])
@pytest.mark.parametrize('clusters', [[3, 1, 3, 1, 2], [0, 1, 2, 3, 4], [9, 9, 9, 9, 9]])
def test_a_bootstrap_is_that_of_a_plain_loop(metric, clusters, monkeypatch, unwidened):
    ours, baseline = draw_sums(5, 13, metric)
    # In several pieces, which must not change the result.
    monkeypatch.setattr(statistics, 'NUMBERS_IN_MEMORY', 13 * 7)
    bootstrap = statistics.bootstrap_difference(ours, baseline, clusters, metric, draws=60, seed=2)
    of_units, of_clusters = np.random.default_rng((2, 0, 0)), np.random.default_rng((2, 1))
    names, means = sorted(set(clusters)), []
    for _ in range(60):
        units = [int(of_units.integers(0, 13)) for _ in range(13)]
        drawn_names = [names[int(of_clusters.integers(0, len(names)))] for _ in names]
        differences = []
        for name in drawn_names:
            of_name = []
            for s, cluster in enumerate(clusters):
                if cluster == name:
                    a, b = (
                        pool(metric, [x.sums[s][u] for u in units], [x.counts[u] for u in units])
                        for x in (ours, baseline)
                    )
                    of_name.append(a - b)
            differences.append(sum(of_name) / len(of_name))
        means.append(sum(differences) / len(differences))
    assert bootstrap[:2] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_clusters_that_differ_make_the_interval_wider(unwidened):
    """Seeds of one teacher are better by 1, those of the other by 0; half of all draws have one teacher."""
    counts = np.ones(50)
    baseline = np.full((4, 50), 4.0)
    ours = np.concatenate([np.full((2, 50), 1.0), np.full((2, 50), 4.0)])
    pair = statistics.Sums(ours, counts), statistics.Sums(baseline, counts)
    assert statistics.bootstrap_difference(*pair, [0, 0, 1, 1], 'rmse')[:2] == pytest.approx((-1.0, 0.0))
    assert statistics.bootstrap_difference(*pair, [0, 0, 0, 0], 'rmse')[:2] == pytest.approx((-0.5, -0.5))


def test_an_interval_covers_as_often_as_it_says():
    """Accuracy of 200 users, one seed: the true difference is 0.1; 400 data sets, three standard errors."""
    covered = 0
    for key in range(400):
        rng = np.random.default_rng([key, 3])
        base = rng.random((1, 200)) < 0.5
        ours = base | (rng.random((1, 200)) < 0.2)
        sums = [statistics.Sums(x.astype(float), np.ones(200)) for x in (ours, base)]
        low, high, *_ = statistics.bootstrap_difference(*sums, [0], 'accuracy', draws=400, seed=key)
        covered += low <= 0.1 <= high
    assert covered / 400 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 400))


def test_the_same_draws_for_the_same_seed_alone():
    pair = draw_sums(2, 30)
    first = statistics.bootstrap_difference(*pair, [0, 1], 'rmse')
    assert statistics.bootstrap_difference(*pair, [0, 1], 'rmse') == first
    assert statistics.bootstrap_difference(*pair, [0, 1], 'rmse', seed=1) != first


def test_what_cannot_be_paired_is_refused():
    ours, baseline = draw_sums(2, 30)
    with pytest.raises(ValueError, match='not the same'):
        statistics.bootstrap_difference(ours, draw_sums(3, 30)[1], [0, 1], 'rmse')
    with pytest.raises(ValueError, match='not the same'):
        other = baseline._replace(counts=baseline.counts + 1)
        statistics.bootstrap_difference(ours, other, [0, 1], 'rmse')
    with pytest.raises(ValueError, match='2 seeds have 3 clusters'):
        statistics.bootstrap_difference(ours, baseline, [0, 1, 2], 'rmse')


def test_every_metric_has_what_becomes_of_its_mean():
    assert statistics.FINISH.keys() == {name for name, *_ in evaluation.METRICS.values()}
    for name, _, finish, _ in evaluation.METRICS.values():
        assert (
            statistics.FINISH[name](np.array([0.25, 4.0])).tolist() == finish(np.array([0.25, 4.0])).tolist()
        )


def test_a_bootstrap_is_widened_as_its_parts_say():
    """By hand: each part's variance and degrees of freedom, put together by Satterthwaite's formula."""
    clusters = np.array([1.0, 2.0, 6.0])  # mean 3; squares 4 + 1 + 9 = 14; variance of the mean 14 / 2 / 3
    of_clusters = 14 / 6
    assert statistics.widening_factor(clusters, np.zeros(1)) == pytest.approx(
        scipy.stats.t.ppf(0.975, 2) / 1.959964 / math.sqrt(2 / 3), rel=1e-6
    )
    # One unit of four has most of the variance: 16 + 1 + 4 + 1 = 22, fourth powers 256 + 1 + 16 + 1 = 274.
    influences = np.array([4.0, -1.0, -2.0, -1.0])
    of_units, freedom = 22 * 4 / 3, 2 * 22**2 / (274 - 22**2 / 4)
    assert freedom > 3  # so it is capped at that of four units
    expected = scipy.stats.t.ppf(0.975, 3) / 1.959964 / math.sqrt(3 / 4)
    assert statistics.widening_factor(np.ones(1), influences) == pytest.approx(expected, rel=1e-6)
    both = of_clusters + of_units
    freedom = both**2 / (of_clusters**2 / 2 + of_units**2 / 3)
    shortfall = (of_clusters * 2 / 3 + of_units * 3 / 4) / both
    expected = scipy.stats.t.ppf(0.975, freedom) / 1.959964 / math.sqrt(shortfall)
    assert statistics.widening_factor(clusters, influences) == pytest.approx(expected, rel=1e-6)
    # Of 400 units one has nine tenths of the variance: 2 / (0.81 - 1 / 400) degrees of freedom, about.
    influences = np.sqrt([0.9, *[0.1 / 399] * 399])
    factor = statistics.widening_factor(np.ones(1), influences)
    assert factor == pytest.approx(scipy.stats.t.ppf(0.975, 2 / (0.81 - 1 / 400)) / 1.959964, rel=0.01)
    # Many similar units have many degrees of freedom; without differences nothing is widened.
    assert statistics.widening_factor(np.ones(1), np.tile([1.0, -1.0], 5000)) == pytest.approx(1.0, abs=1e-3)
    assert statistics.widening_factor(np.ones(3), np.zeros(5)) == 1.0


@pytest.mark.parametrize('metric', ['rmse', 'accuracy'])
def test_an_influence_is_how_the_difference_moves_with_a_units_weight(metric):
    """By a difference quotient in the weight of a unit, for two data sets with shares."""
    pairs = [draw_sums(5, 13, metric, key=key) for key in (0, 1)]
    shares, clusters = np.array([2.0, -0.5]), [0, 0, 0, 1, 2]
    members = [[0, 1, 2], [3], [4]]

    def compute_statistic(weights):
        return np.mean(
            [
                np.mean(
                    [
                        sum(
                            share
                            * (
                                pool(metric, ours.sums[s] * weights, ours.counts * weights)
                                - pool(metric, baseline.sums[s] * weights, baseline.counts * weights)
                            )
                            for share, (ours, baseline) in zip(shares, pairs, strict=True)
                        )
                        for s in of_cluster
                    ]
                )
                for of_cluster in members
            ]
        )

    arguments = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            statistics,
            'widening_factor',
            lambda values, influences: arguments.append((values, influences)) or 1.0,
        )
        compared = statistics.ComparedPairs(pairs, clusters, shares)
        statistics.bootstrap_differences([compared], metric, draws=10)
    ((of_clusters, influences),) = arguments
    assert of_clusters.mean() == pytest.approx(compute_statistic(np.ones(13)))
    step = 1e-5
    numeric_influences = [
        (compute_statistic(np.ones(13) + step * np.eye(13)[u]) - compute_statistic(np.ones(13))) / step
        for u in range(13)
    ]
    assert influences == pytest.approx(
        np.array(numeric_influences), abs=1e-5 * np.abs(numeric_influences).max() + 1e-7
    )
    assert influences.sum() == pytest.approx(0.0, abs=1e-12)


# Differences between users and seeds: the standard deviations of the effects of a user, a
# teacher, a draw of training examples and the rest; and how many teachers ten seeds have.
NULL = {
    'users': (1.0, 0.02, 0.0, 0.3, 10),
    'teachers': (0.02, 1.0, 0.0, 0.3, 10),
    'training draws': (0.02, 0.0, 1.0, 0.3, 10),
    'all alike': (1.0, 0.4, 0.4, 0.3, 10),
    'the rest': (0.05, 0.02, 0.02, 2.0, 10),
    'teachers of two students each': (0.02, 1.0, 0.3, 0.3, 5),
    'users, teachers of two students each': (1.0, 0.2, 0.2, 0.3, 5),
}
# Users of a split and the spread of their numbers of ratings. In the temporal split a tenth of the users has
# half of the ratings, so 150 users count as about 50.
USERS = {'by time': (150, 1.25), 'by user': (400, 0.9)}


@pytest.mark.parametrize(
    ('scenario', 'users', 'tail'),
    [
        ('users', 'by time', 'normal'),
        ('users', 'by user', 'normal'),
        ('teachers', 'by time', 'normal'),
        ('training draws', 'by time', 'normal'),
        ('teachers of two students each', 'by time', 'normal'),
        pytest.param('users', 'by time', 'heavy', marks=pytest.mark.long),
        *(
            pytest.param(scenario, 'by time', 'normal', marks=pytest.mark.long)
            for scenario in ('all alike', 'the rest', 'users, teachers of two students each')
        ),
        *(
            pytest.param(scenario, 'by user', 'normal', marks=pytest.mark.long)
            for scenario in ('teachers', 'training draws', 'all alike')
        ),
    ],
)
def test_differences_of_nothing_are_called_significant_once_in_twenty_times(scenario, users, tail):
    """Of 1,000 differences of two equally good methods, at most 6% are significant by both intervals.

    The standard error of such a share is 0.7%.
    """
    of_user, of_teacher, of_draw, rest, num_teachers = NULL[scenario]
    (num_users, spread), sims = USERS[users], 1000
    rng = np.random.default_rng([len(scenario), num_users])
    counts = np.maximum(1, np.round(np.exp(rng.normal(1.0, spread, num_users))))
    clusters = [seed % num_teachers for seed in range(10)]
    user = (
        rng.normal(size=(sims, 1, num_users)) if tail == 'normal' else rng.standard_t(4, (sims, 1, num_users))
    )
    effects = (
        of_user * user
        + of_teacher * rng.normal(size=(sims, num_teachers, 1))[:, clusters]
        + of_draw * rng.normal(size=(sims, 10, 1))
        + rest * rng.normal(size=(sims, 10, num_users)) / np.sqrt(counts)
    )
    # Small relative to the metric, as in reality.
    baseline = statistics.Sums(np.broadcast_to(counts, (10, num_users)), counts)
    ours = [statistics.Sums(counts * (1 + 0.01 * effect), counts) for effect in effects]
    compared = [statistics.ComparedPairs([(one, baseline)], clusters) for one in ours]
    bootstraps = statistics.bootstrap_differences(compared, 'rmse', draws=1000)
    verdicts, of_seeds = [], []
    for one, bootstrap in zip(ours, bootstraps, strict=True):
        values = np.sqrt(one.sums.sum(axis=1) / counts.sum())
        paired = statistics.paired_difference(values, np.ones(10), clusters)
        verdicts.append(statistics.verdict(paired, bootstrap._replace(low_error=0.0, high_error=0.0), True))
        of_seeds.append(abs(paired.mean) > paired.half_width)
    assert set(verdicts) <= {statistics.BETTER, statistics.NOT_SIGNIFICANT, statistics.WORSE}
    called = 1 - verdicts.count(statistics.NOT_SIGNIFICANT) / sims
    assert called <= 0.06
    if scenario == 'users':
        # Neither interval alone is a test: seeds do not vary the users.
        assert np.mean(of_seeds) > 0.5


def test_a_monte_carlo_error_covers_how_far_a_bound_is_from_the_true_quantile():
    """Normal draws with known quantiles: 95% of 600 errors cover, within three standard errors."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        low, high, low_error, high_error = statistics.percentile_interval(rng.normal(size=1000))
        covered += [abs(low + 1.959964) <= low_error, abs(high - 1.959964) <= high_error]
    # The longer side of the bound's own interval is used on both sides, so it covers somewhat more than 95%.
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 600) <= np.mean(covered) <= 0.985


def test_a_bound_that_another_seed_moves_over_0_is_not_significant():
    """A bound of 0 is never significant; without the Monte Carlo error it would be for half of the seeds."""
    without, with_error = [], []
    for seed in range(40):
        draws = np.random.default_rng(seed).normal(-1.959964, 1.0, 20_000)
        interval = statistics.percentile_interval(draws)
        without.append(interval.high < 0)
        with_error.append(interval.outer().high < 0)
    assert 10 <= sum(without) <= 30 and sum(with_error) <= 3


def test_a_bound_nearer_to_0_than_its_error_is_not_outside():
    bootstrap = statistics.Bootstrap(-0.2, -0.1, 0.05, 0.11)
    assert bootstrap.bounds() == (-0.2, -0.1)
    assert bootstrap.outer() == pytest.approx((-0.25, 0.01))
    paired = statistics.Estimate(-0.15, 0.1, 3, 3)
    assert statistics.verdict(paired, bootstrap, True) == statistics.NOT_SIGNIFICANT
    assert statistics.verdict(paired, bootstrap._replace(high_error=0.09), True) == statistics.BETTER
    # The uncertainty of the other bound does not matter.
    assert (
        statistics.verdict(paired, bootstrap._replace(low_error=9.0, high_error=0.0), True)
        == statistics.BETTER
    )


def test_a_bootstrap_of_several_is_that_of_each():
    """With common draws for all, different numbers of clusters and shared Sums."""
    ours, baseline = draw_sums(4, 30)
    other = draw_sums(4, 30, key=1)[0]._replace(counts=ours.counts)
    clusters = [[0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 0, 1]]
    pairs = [(ours, baseline), (other, baseline), (ours, other)]
    compared = [
        statistics.ComparedPairs([pair], of_one) for pair, of_one in zip(pairs, clusters, strict=True)
    ]
    for bootstrap, pair, of_one in zip(
        statistics.bootstrap_differences(compared, 'rmse', 300), pairs, clusters, strict=True
    ):
        assert bootstrap == pytest.approx(statistics.bootstrap_difference(*pair, of_one, 'rmse', 300))
    assert statistics.bootstrap_differences([], 'rmse') == []


# --- Verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('interval', 'bootstrap', 'of_rmse', 'of_accuracy'),
    [
        ((-0.2, -0.1), None, statistics.BETTER, statistics.WORSE),
        ((0.1, 0.2), None, statistics.WORSE, statistics.BETTER),
        ((-0.2, 0.1), None, statistics.NOT_SIGNIFICANT, statistics.NOT_SIGNIFICANT),
        ((-0.2, 0.0), None, statistics.NOT_SIGNIFICANT, statistics.NOT_SIGNIFICANT),
        ((-0.2, -0.1), (-0.2, 0.1), statistics.NOT_SIGNIFICANT, statistics.NOT_SIGNIFICANT),
        ((-0.2, 0.1), (-0.2, -0.1), statistics.NOT_SIGNIFICANT, statistics.NOT_SIGNIFICANT),
        ((-0.2, -0.1), (-0.3, -0.05), statistics.BETTER, statistics.WORSE),
        ((-0.2, -0.1), (0.1, 0.2), statistics.NOT_SIGNIFICANT, statistics.NOT_SIGNIFICANT),
    ],
)
def test_nothing_is_better_whose_interval_holds_0(interval, bootstrap, of_rmse, of_accuracy):
    low, high = interval
    paired = statistics.Estimate((low + high) / 2, (high - low) / 2, 5, 5)
    bootstrap = bootstrap and statistics.Bootstrap(*bootstrap, 0.0, 0.0)
    assert statistics.verdict(paired, bootstrap, less_is_better=True) == of_rmse
    assert statistics.verdict(paired, bootstrap, less_is_better=False) == of_accuracy
    # Two teachers are too few, however many students they have.
    two_clusters = paired._replace(clusters=2)
    assert statistics.verdict(two_clusters, bootstrap, less_is_better=True) == statistics.TOO_FEW


def test_the_bounds_of_an_estimate():
    assert statistics.Estimate(2.0, 0.5, 3, 3).interval() == (1.5, 2.5)
    assert statistics.Estimate(2.0, None, 1, 1).interval() is None
