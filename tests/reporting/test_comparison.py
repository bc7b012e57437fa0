"""Differences and verdicts of the tables, against SciPy and NumPy."""

import numpy as np
import pytest
import scipy.stats
from etils import epath

from td_jax import statistics
from td_jax.reporting import comparison, runs, settings

STEP = 2.0**-8


def compare_methods(root):
    """{method: ComparedRow} of the only setting under a folder."""
    found_runs = runs.find_runs(epath.Path(root)).runs
    (setting,) = settings.make_settings(found_runs, {})
    return {of_row.row.method: of_row for of_row in comparison.compare_setting(setting)}


def test_differences_are_paired_where_seeds_agree(write_run, tmp_path):
    rng = np.random.default_rng(0)
    units = np.array([0, 0, 1, 2, 2, 2, 3])
    squared = {name: rng.random((count, 7)) for name, count in (('scratch', 4), ('td_0', 2), ('td_1', 3))}
    values = {name: np.sqrt(errors.mean(axis=1)) for name, errors in squared.items()}

    def write(name, **changes):
        write_run(tmp_path / name, values[name].tolist(), squared[name], units=units, **changes)

    # No distillation has seeds 0 to 3; TD has 0 and 1 of one teacher, and 3, 5 and 7 of another.
    write('scratch', method='supervised')
    write('td_0', teacher='a')
    write('td_1', teacher='b', seed=3, seed_step=2, teacher__seed=1)
    write_run(tmp_path / 'ld', [0.3, 0.4], method='ld', seed=90)
    comparisons = compare_methods(tmp_path)
    scratch, td, ld = (comparisons[method] for method in ('supervised', 'td', 'ld'))
    assert scratch.paired is None
    assert scratch.own == statistics.estimate_mean(values['scratch'])
    own = [values['td_0'].mean(), values['td_1'].mean()]
    interval = scipy.stats.t.interval(0.95, 1, np.mean(own), scipy.stats.sem(own))
    np.testing.assert_allclose(td.own.interval(), interval)
    # Both have seeds 0, 1 and 3, of two teachers.
    by_seed = np.array([*values['td_0'], values['td_1'][0]]) - values['scratch'][[0, 1, 3]]
    expected = scipy.stats.ttest_1samp([by_seed[:2].mean(), by_seed[2]], 0).confidence_interval()
    np.testing.assert_allclose(td.paired.interval(), (expected.low, expected.high))
    assert (td.paired.count, td.paired.clusters) == (3, 2)
    # Two teachers support no verdict.
    assert (td.p_value, td.verdict) == (None, statistics.TOO_FEW)
    errors = np.concatenate([squared['td_0'], squared['td_1'][:1]]), squared['scratch'][[0, 1, 3]]
    counts = np.bincount(units)
    sums = [
        np.stack([np.bincount(units, row) for row in np.float64(np.float32(of_side))]) for of_side in errors
    ]
    sums = [statistics.Sums(np.rint(of_side / STEP) * STEP, counts) for of_side in sums]
    assert td.bootstrap == statistics.bootstrap_difference(*sums, ['a', 'a', 'b'], 'rmse')
    # No seed in common.
    assert (ld.own.mean, ld.paired, ld.bootstrap, ld.p_value, ld.verdict) == (
        pytest.approx(0.35),
        None,
        None,
        None,
        '',
    )


def test_holm_and_verdicts_are_of_the_rows_of_a_setting(write_run, tmp_path):
    write_run(tmp_path / 'scratch', [1.0, 1.1, 1.2, 1.3], method='supervised')
    write_run(tmp_path / 'ld', [0.81, 0.9, 0.99, 1.1], method='ld')
    write_run(tmp_path / 'fd', [1.3, 1.41, 1.5, 1.59], method='fd')
    write_run(tmp_path / 'td', [1.0, 1.2, 1.1, 1.3])
    comparisons = compare_methods(tmp_path)
    assert {method: of_row.verdict for method, of_row in comparisons.items()} == {
        'supervised': '',
        'ld': 'better',
        'fd': 'worse',
        'td': 'n.s.',
    }
    values = {method: list(of_row.row.values().values()) for method, of_row in comparisons.items()}
    p_values = {m: scipy.stats.ttest_rel(values[m], values['supervised']).pvalue for m in ('ld', 'fd', 'td')}
    (smallest, middle, largest) = sorted(p_values, key=p_values.get)
    assert comparisons[smallest].p_value == pytest.approx(3 * p_values[smallest])
    assert comparisons[middle].p_value == pytest.approx(max(2 * p_values[middle], 3 * p_values[smallest]))
    assert comparisons[largest].p_value == pytest.approx(p_values[largest])


def test_of_accuracies_more_is_better(write_run, tmp_path):
    write_run(tmp_path / 'scratch', [0.5, 0.6, 0.7], method='supervised', metric='accuracy')
    write_run(tmp_path / 'td', [0.71, 0.8, 0.9], metric='accuracy')
    assert compare_methods(tmp_path)['td'].verdict == 'better'


def test_one_seed_gives_no_verdict(write_run, tmp_path):
    """Even if the bootstrap over its examples is far from 0."""
    write_run(tmp_path / 'scratch', [1.0], np.ones((1, 9)), method='supervised')
    write_run(tmp_path / 'td', [0.1], np.full((1, 9), 0.01))
    comparison_of_td = compare_methods(tmp_path)['td']
    assert comparison_of_td.paired == (pytest.approx(-0.9), None, 1, 1)
    assert comparison_of_td.bootstrap.high < 0
    assert (comparison_of_td.p_value, comparison_of_td.verdict) == (None, statistics.TOO_FEW)


def test_errors_that_are_damaged_or_of_others_leave_the_bootstrap_out(write_run, tmp_path):
    errors = np.ones((2, 5))
    write_run(tmp_path / 'scratch', [1.0, 1.0], errors, method='supervised')
    ld = write_run(tmp_path / 'ld', [0.5, 0.6], errors, method='ld')
    write_run(tmp_path / 'td', [0.5, 0.6], errors, units=np.array([0, 0, 1, 1, 2]))
    (ld / 'errors.npz').write_bytes(b'PK')
    comparisons = compare_methods(tmp_path)
    assert comparisons['ld'].bootstrap is None
    assert 'errors.npz cannot be read' in comparisons['ld'].remarks[0]
    assert (comparisons['td'].bootstrap, comparisons['td'].remarks) == (None, ())
    assert comparisons['td'].paired.count == 2
