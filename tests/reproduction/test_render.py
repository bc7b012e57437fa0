"""Tables as Markdown: missing cells, differences, and the paper's numbers."""

import json

import numpy as np
import pytest
import scipy.stats

from td_jax import config as config_lib
from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reproduction import comparison, errors, render, tables

PAPER = json.loads(tables.PAPER.read_text())['tables']
DERIVED = {name: t for name, t in tables.TABLES.items() if isinstance(t, tables.Derived)}
GENRE, SCRATCH = 'Genre 1', 'Train from scratch'
TD_IS_TOO_FEW = '- TD: 0 better, 0 n.s., 0 worse, 1 too few seeds'


def make_cell(mean, seeds=(0, 1), teacher=0.9):
    values = [mean - 0.01, mean + 0.01]
    return {
        'mean': mean,
        'stderr': 0.01,
        'values': values,
        'seeds': list(seeds),
        'teacher': teacher,
        'metric': 'rmse',
        'split': 'test',
    }


def find_cells(text, row):
    """The cells of a row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_a_table_shows_the_papers_numbers_and_what_is_missing():
    table = tables.TABLES['3']
    rows = {row: None for row in table.rows} | {SCRATCH: make_cell(1.0), 'TD': make_cell(0.98)}
    rows['Teacher'] = {'mean': 0.9, 'stderr': None}
    text = render.render_runs('3', table, {GENRE: rows})
    # t(0.975) of one degree of freedom is 12.7062, the standard error 0.01.
    text, counted = text.split('### Compared with')
    assert find_cells(text, 'TD') == [
        'TD',
        '2',
        '0.9800 ± 0.1271',
        '-0.0200 ± 0.0000',
        'no errors stored',
        'no variance',
        '0.9965 ± 0.0001',
        '-0.0137',
    ]
    assert find_cells(text, 'LD')[1:6] == ['', 'missing', '', '', '']
    assert find_cells(text, 'LD')[6].startswith('1.0083')
    assert find_cells(text, 'Teacher')[1:6] == ['1', '0.9000', '-0.1000, not paired', '', '']
    assert find_cells(text, SCRATCH) == [SCRATCH, '2', '1.0000 ± 0.1271', '', '', '', '1.0102 ± 0.0003', '']
    assert [line for line in counted.splitlines() if line.startswith('- ')] == [TD_IS_TOO_FEW]
    assert find_cells(text, 'method') == [
        'method',
        'n',
        'ours, mean ± 95%',
        'ours, Δ to Train from scratch, mean ± 95%',
        'ours, Δ, 95% bootstrap',
        'ours, p (Holm)',
        'paper, mean ± standard error',
        'paper, difference',
    ]
    assert '\n± is the half-width of the 95% t interval over n seeds' in text
    assert 'resamples users and seeds' in text
    assert '\ntest rmse.\n' in text
    assert f'### {GENRE} (Drama)' in text


def test_without_its_baseline_a_row_has_no_difference():
    table = tables.TABLES['3']
    text = render.render_runs(
        '3', table, {GENRE: {row: None for row in table.rows} | {'TD': make_cell(0.98)}}
    )
    assert find_cells(text, SCRATCH)[1:6] == ['', 'missing', '', '', '']
    assert find_cells(text, 'TD')[1:6] == ['2', '0.9800 ± 0.1271', '', '', '']


def test_a_difference_has_the_interval_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=5), rng.normal(size=5)
    table = tables.TABLES['digits']
    rows = dict.fromkeys(table.rows)
    for row, values in ((SCRATCH, theirs), ('TD', ours)):
        rows[row] = make_cell(values.mean(), seeds=range(5)) | {'values': list(values)}
    text = render.render_runs('digits', table, {'5 to 9': rows})
    interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    half = (interval.high - interval.low) / 2
    assert find_cells(text, 'TD')[1] == '5'
    assert find_cells(text, 'TD')[5] == f'{scipy.stats.ttest_rel(ours, theirs).pvalue:.4f}'
    assert find_cells(text, 'TD')[3] == f'{(interval.high + interval.low) / 2:+.4f} ± {half:.4f}'


def test_other_seeds_cannot_be_paired():
    compared = comparison.compare(make_cell(1.0), make_cell(1.25, seeds=(3, 4)))
    assert render.write_difference(compared) == '-0.2500, not paired'
    assert (render.write_bounds(compared), compared.p_value) == ('', None)
    assert compared.verdict(less_is_better=True) == statistics.NOT_SIGNIFICANT


def test_one_seed_has_no_interval():
    table = tables.TABLES['digits']
    one = make_cell(0.9, seeds=(0,)) | {'values': [0.9]}
    text = render.render_runs('digits', table, {'5 to 9': {row: one for row in table.rows}})
    text, counted = text.split('### Compared with')
    assert find_cells(text, 'LD') == ['LD', '1', '0.9000', '+0.0000', 'no errors stored', '']
    assert '\n- LD: 0 better, 0 n.s., 0 worse, 1 too few seeds\n' in counted


def test_the_teachers_row_is_what_another_row_says_of_it():
    table = tables.TABLES['3']

    def make_rows(scores):
        results = {row: None for row in table.rows if row != 'Teacher'}
        results |= {row: make_cell(1.0, teacher=score) for row, score in scores.items()}
        return render.fill_teacher(table, {GENRE: results})[GENRE]

    rows = make_rows({SCRATCH: None, 'LD': 0.8, 'TD': 0.8})
    assert rows['Teacher'] == {'mean': 0.8, 'stderr': None}
    assert rows['FD'] is None
    assert list(rows) == list(table.rows)
    assert make_rows({SCRATCH: None})['Teacher'] is None


def test_a_table_the_paper_does_not_have_shows_ours_alone():
    table = tables.TABLES['digits']
    text = render.render_runs('digits', table, {'5 to 9': {row: make_cell(0.9) for row in table.rows}})
    expected = ['LD', '2', '0.9000 ± 0.1271', '+0.0000 ± 0.0000', 'no errors stored', 'no variance']
    assert find_cells(text, 'LD') == expected
    assert 'paper' not in text


# --- With errors -----------------------------------------------------------------------------------

UNITS = np.array([4, 4, 9, 9, 9, 2, 2, 2, 2, 7, 7, 7])


def make_measured_cell(values, teachers=None, groups=None):
    """A cell of squared errors, [seeds, examples]."""
    values = np.asarray(values, float)
    metric = np.sqrt(values.mean(axis=1))
    return make_cell(float(metric.mean()), seeds=range(len(values))) | {
        'values': metric.tolist(),
        'teachers': teachers,
        'errors': errors.sum_by_unit(values, UNITS),
        'groups': groups or {},
    }


def draw_rounded(shape, low=0.0, high=2.0, key=0):
    """Random values that need no rounding."""
    return np.rint(np.random.default_rng(key).uniform(low, high, shape) * 64) / 64


@pytest.mark.parametrize(
    ('ours', 'baseline', 'clusters'),
    [
        # With one teacher, seeds are drawn, not teachers.
        ([0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3]),
        (None, None, [0, 1, 2, 3]),
        ([0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]),
        ([0, 0, 0, 0], [2, 3, 3, 3], [2, 3, 3, 3]),
        # Students that share a teacher in either row are one cluster in the difference.
        ([0, 1, 2, 1], [5, 6, 5, 7], [0, 1, 0, 1]),
    ],
)
def test_the_bootstrap_is_over_users_and_teachers(ours, baseline, clusters):
    a, b = draw_rounded((4, 12), key=1), draw_rounded((4, 12), key=2)
    compared = comparison.compare(make_measured_cell(a, ours), make_measured_cell(b, baseline))
    sums = [np.stack([v[:, u == UNITS].sum(axis=1) for u in (2, 4, 7, 9)], axis=1) for v in (a, b)]
    counts = np.array([4, 2, 3, 3])
    pair = [statistics.Sums(s, counts) for s in sums]
    assert compared.bootstrap == statistics.bootstrap_difference(*pair, clusters, 'rmse')
    low, high = compared.bootstrap.bounds()
    assert render.write_bounds(compared) == f'{low:+.4f} to {high:+.4f}'


def test_errors_of_other_examples_have_no_bootstrap():
    ours, theirs = (
        make_measured_cell(draw_rounded((3, 12), key=1)),
        make_measured_cell(draw_rounded((3, 12), key=2)),
    )
    theirs['errors'] = errors.sum_by_unit(draw_rounded((3, 12)), UNITS + 1)
    assert render.write_bounds(comparison.compare(ours, theirs)) == 'no errors stored'


def render_table_3(cells):
    """Table 3 as text, from {number of a genre: {row: result}}."""
    table = tables.TABLES['3']
    columns = {f'Genre {i}': dict.fromkeys(table.rows) | rows for i, rows in cells.items()}
    return render.render_runs('3', table, columns)


def test_p_values_are_corrected_over_all_comparisons_of_a_table():
    """Two rows in three columns, and their means over the columns: 3 + 3 + 2 comparisons."""
    cells, p_values, differences = {}, {}, {}
    for genre in (1, 2, 3):
        base, *others = (draw_rounded((5, 12), high=high, key=10 * genre + high) for high in (2, 1, 3))
        cells[genre] = {
            SCRATCH: make_measured_cell(base),
            'TD': make_measured_cell(others[0]),
            'LD': make_measured_cell(others[1]),
        }
        for row in ('TD', 'LD'):
            pair = [np.array(cells[genre][name]['values']) for name in (row, SCRATCH)]
            p_values[genre, row] = scipy.stats.ttest_rel(*pair).pvalue
            differences.setdefault(row, []).append(pair[0] - pair[1])
    for row, of_row in differences.items():
        p_values['mean', row] = scipy.stats.ttest_1samp(np.mean(of_row, axis=0), 0).pvalue
    expected = dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))
    assert len(expected) == 8
    blocks = render_table_3(cells).split('### ')
    for (place, row), p in expected.items():
        block = blocks[place] if place != 'mean' else blocks[-1]
        assert find_cells(block, row)[5 if place != 'mean' else 4] == f'{p:.4f}', (place, row)
    # A row in one column alone has no mean; columns without a row are left out of its mean.
    del cells[2]['LD'], cells[3]['LD']
    cells[4] = {SCRATCH: make_measured_cell(draw_rounded((5, 12)))}
    blocks = render_table_3(cells).split('### ')
    comparisons = [('mean', 'TD'), (1, 'LD'), *((genre, 'TD') for genre in (1, 2, 3))]
    del p_values['mean', 'TD']
    p_values_there = {key: p_values[key] for key in comparisons[1:]}
    adjusted = dict(zip(p_values_there, statistics.holm(list(p_values_there.values())), strict=True))
    for (genre, row), p in adjusted.items():
        assert find_cells(blocks[genre], row)[5] == f'{p:.4f}'
    assert find_cells(blocks[4], 'TD')[3:6] == ['', '', '']


def test_students_of_one_teacher_are_one():
    """Intervals and p-values of six students of three teachers are those of the three teachers' means."""
    teachers = [0, 1, 2] * 2
    base, ours = draw_rounded((6, 12), key=1), draw_rounded((6, 12), key=2)
    cells = {SCRATCH: make_measured_cell(base, [0] * 6), 'TD': make_measured_cell(ours, teachers)}
    cells['TD']['on_test'] = {'values': cells['TD']['values'], 'seeds': cells['TD']['seeds'], 'trials': 4}
    cells['TD']['groups'] = {
        name: {'count': 6, 'values': cells['TD']['values']} for name in ('known_users', 'unknown_users')
    }
    values = {row: np.array(cells[row]['values']) for row in cells}
    of_teachers = {row: of_row.reshape(2, 3).mean(axis=0) for row, of_row in values.items()}
    expected = scipy.stats.ttest_rel(of_teachers['TD'], of_teachers[SCRATCH])
    low, high = expected.confidence_interval()
    own = scipy.stats.ttest_1samp(of_teachers['TD'], 0).confidence_interval()
    cells_of_td = find_cells(render_table_3({1: cells}), 'TD')
    assert cells_of_td[1] == '6 of 3 teachers'
    assert cells_of_td[2] == f'{values["TD"].mean():.4f} ± {(own.high - own.low) / 2:.4f}'
    assert cells_of_td[3] == f'{(low + high) / 2:+.4f} ± {(high - low) / 2:.4f}'
    assert cells_of_td[5] == f'{expected.pvalue:.4f}'
    assert cells_of_td[6:9] == [cells_of_td[2], cells_of_td[2], f'{cells_of_td[2]}, best of 4']
    # The students without distillation have no teacher, so they are six.
    assert find_cells(render_table_3({1: cells}), SCRATCH)[1] == '6'


def test_a_table_says_by_which_earlier_protocol_it_was_measured():
    def render_protocols(*protocols):
        cells = [make_measured_cell(draw_rounded((3, 12), key=key)) for key in range(len(protocols))]
        for cell, protocol in zip(cells, protocols, strict=True):
            cell.update({} if protocol is None else {'protocol': protocol})
        return render_table_3({1: dict(zip((SCRATCH, 'TD', 'LD'), cells, strict=False))})

    first, today = render.EARLIER[1], config_lib.PROTOCOL
    assert render.EARLIER.keys() == set(range(1, today))
    assert f'\n**{first}**\n' in render_protocols(None, None)
    assert f'\n**{first}** (1 of 3 cells)\n' in render_protocols(today, 1, today)
    assert 'earlier protocol' not in render_protocols(today, today)


def test_verdicts_are_counted_over_the_columns():
    base = draw_rounded((5, 12), 1.0, 2.0)

    def make_shifted_cell(by_seed, by_example=0.0):
        return make_measured_cell(base + np.reshape(by_seed, (-1, 1)) + by_example)

    shifts_of_examples = np.where(UNITS == 2, -0.9, 0.5)  # much better for one user, worse for three
    cells = {
        1: {
            SCRATCH: make_measured_cell(base),
            'TD': make_shifted_cell([-0.5] * 5),
            'LD': make_shifted_cell([0.25] * 5),
        },
        2: {SCRATCH: make_measured_cell(base), 'TD': make_shifted_cell([-0.5, -0.25, -0.5, -0.25, -0.5])},
        3: {SCRATCH: make_measured_cell(base), 'TD': make_shifted_cell([0.5, -0.5, 0.5, -0.5, 0.25])},
        4: {SCRATCH: make_measured_cell(base), 'TD': make_shifted_cell([-0.125] * 5, shifts_of_examples)},
    }
    compared = comparison.compare(cells[4]['TD'], cells[4][SCRATCH])
    # All seeds agree, but the bootstrap over users does not.
    assert compared.paired.interval().high < 0 or compared.paired.interval().low > 0
    assert compared.bootstrap.low < 0 < compared.bootstrap.high
    _, counted = render_table_3(cells).split(f'### Compared with {SCRATCH}, in 4 columns\n')
    assert [line for line in counted.splitlines() if line.startswith('- ')] == [
        '- LD: 0 better, 0 n.s., 1 worse',
        '- TD: 2 better, 2 n.s., 0 worse',
    ]


def test_the_mean_over_columns_is_that_of_each_seeds_differences(unwidened):
    """Two genres with partly different users; a third has no baseline."""
    teachers, units = [0, 1, 2, 2], {1: np.array([4, 4, 9, 9, 2, 2]), 2: np.array([9, 9, 9, 7, 2, 2, 2])}
    cells, values, sums = {}, {}, {}
    for genre, of_genre in units.items():
        for row, high in ((SCRATCH, 2.0), ('TD', 1.5)):
            squared = draw_rounded((4, len(of_genre)), high=high, key=10 * genre + len(row))
            cell = make_measured_cell(np.ones((4, 12)), teachers)
            values[row, genre] = np.sqrt(squared.mean(axis=1))
            cell |= {'values': values[row, genre].tolist(), 'errors': errors.sum_by_unit(squared, of_genre)}
            cells.setdefault(genre, {})[row] = cell
            sums[row, genre] = [squared[:, of_genre == unit].sum(axis=1) for unit in (2, 4, 7, 9)]
    cells[3] = {'TD': cells[1]['TD']}
    # LD is in one column alone.
    cells[1]['LD'] = cells[1]['TD']
    _, text = render_table_3(cells).split('### Mean over 2 columns\n')
    of_seeds = {row: np.mean([values[row, genre] for genre in units], axis=0) for row in ('TD', SCRATCH)}

    def run_t_test(ours, theirs):
        """A paired t-test of the teachers' means; teacher 2 has the last two students."""
        return scipy.stats.ttest_rel(*([*of_row[:2], of_row[2:].mean()] for of_row in (ours, theirs)))

    expected = run_t_test(of_seeds['TD'], of_seeds[SCRATCH])
    # TD in both columns and LD (the cell of TD) in one are of the same family of tests.
    of_columns = [run_t_test(values['TD', genre], values[SCRATCH, genre]).pvalue for genre in (1, 2, 1)]
    p_value = statistics.holm([expected.pvalue, *of_columns])[0]
    low, high = expected.confidence_interval()

    # A plain loop over the draws of users and of teachers.
    of_users, of_teachers = np.random.default_rng((0, 0, 0)), np.random.default_rng((0, 1))
    counts = {genre: [np.sum(of_genre == unit) for unit in (2, 4, 7, 9)] for genre, of_genre in units.items()}
    users = of_users.integers(0, 4, (20_000, 4))
    drawn_teachers = of_teachers.integers(0, 3, (20_000, 3))
    # Each genre has three of the four users, so some draws leave a genre without ratings.
    ratings = {genre: np.array(counts[genre])[users].sum(axis=1) for genre in units}
    is_draw = np.all([ratings[genre] > 0 for genre in units], axis=0)

    def draw_rmse(row, genre):
        """The RMSE of each bootstrap draw, [seeds, draws]."""
        by_seed = np.array(sums[row, genre]).T
        return np.sqrt(by_seed[:, users[is_draw]].sum(axis=2) / ratings[genre][is_draw])

    differences = np.mean([draw_rmse('TD', genre) - draw_rmse(SCRATCH, genre) for genre in units], axis=0)
    of_teacher = np.array([differences[0], differences[1], differences[2:].mean(axis=0)])
    drawn_means = np.mean(
        [of_teacher[teacher, np.arange(is_draw.sum())] for teacher in drawn_teachers[is_draw].T], axis=0
    )
    assert 19_000 < len(drawn_means) < 20_000
    bootstrap = np.percentile(drawn_means, [2.5, 97.5])
    assert find_cells(text, 'TD') == [
        'TD',
        '4 of 3 teachers',
        f'{(low + high) / 2:+.4f} ± {(high - low) / 2:.4f}',
        f'{bootstrap[0]:+.4f} to {bootstrap[1]:+.4f}',
        f'{p_value:.4f}',
        statistics.BETTER if max(high, bootstrap[1]) < 0 else statistics.NOT_SIGNIFICANT,
    ]
    assert '| LD |' not in text
    # One column has no mean.
    del cells[2]
    assert 'Mean over' not in render_table_3(cells)


def test_the_mean_over_columns_is_also_given_for_the_sensitivity_check():
    ours, theirs = (
        np.array([[0.5, 0.75, 0.5], [1.0, 1.5, 1.0]]),
        np.array([[1.0, 1.0, 1.25], [1.0, 1.25, 2.0]]),
    )
    cells = {
        genre: {row: make_measured_cell(draw_rounded((3, 12))) for row in (SCRATCH, 'TD')} for genre in (1, 2)
    }
    assert 'test set' not in render_table_3(cells)
    for row, values in (('TD', ours), (SCRATCH, theirs)):
        for genre, of_genre in zip((1, 2), values, strict=True):
            on_test = {'values': of_genre.tolist(), 'seeds': cells[genre][row]['seeds'], 'trials': 2}
            cells[genre][row]['on_test'] = on_test | {'mean': of_genre.mean()}
    _, text = render_table_3(cells).split('### Mean over 2 columns\n')
    low, high = scipy.stats.ttest_rel(ours.mean(axis=0), theirs.mean(axis=0)).confidence_interval()
    # (-0.25 + 0.0 - 0.875) / 3
    assert (low + high) / 2 == pytest.approx(-0.375)
    assert find_cells(text, 'TD')[6] == f'-0.3750 ± {(high - low) / 2:.4f}'
    assert 'test set (sensitivity check, not a result)' in text
    # If a column lacks it, there is no mean.
    del cells[2]['TD']['on_test']
    _, text = render_table_3(cells).split('### Mean over 2 columns\n')
    assert len(find_cells(text, 'TD')) == 6 and 'test set' not in text


def test_images_of_two_data_sets_are_not_the_same_because_their_numbers_are(unwidened):
    values = {name: (draw_rounded((3, 12), key=key) > 1).astype(float) for key, name in enumerate('abcd')}
    cells = {name: make_measured_cell(x) | {'metric': 'accuracy'} for name, x in values.items()}
    pairs = [(cells['a'], cells['b']), (cells['c'], cells['d'])]
    sums = {
        name: np.stack([x[:, u == UNITS].sum(axis=1) for u in (2, 4, 7, 9)], axis=1)
        for name, x in values.items()
    }
    counts = np.array([4, 2, 3, 3])
    # Each data set has its own draws of images, with common draws of seeds.
    drawn_images = [np.random.default_rng((0, 0, place)).integers(0, 4, (20_000, 4)) for place in (0, 1)]
    of_seeds = np.random.default_rng((0, 1))
    shares = np.array([2.0, -1.0])
    seeds = of_seeds.integers(0, 3, (20_000, 3))
    differences = np.array(
        [
            (sums[a] - sums[b])[:, images].sum(axis=2) / counts[images].sum(axis=1)
            for (a, b), images in zip(('ab', 'cd'), drawn_images, strict=True)
        ]
    )  # [sets, seeds, draws]
    drawn_means, drawn_shares = (
        np.mean([of_seed[seeds[:, i], np.arange(20_000)] for i in range(3)], axis=0)
        for of_seed in (differences.mean(axis=0), np.tensordot(shares, differences, 1))
    )
    expected = tuple(np.percentile(drawn_means, [2.5, 97.5]))
    assert comparison.compare_over_columns(pairs).bootstrap[:2] == pytest.approx(expected)
    shared = comparison.compare_over_columns(pairs, shares)
    assert shared.bootstrap[:2] == pytest.approx(tuple(np.percentile(drawn_shares, [2.5, 97.5])))
    by_column = [[pair[0]['values'][seed] - pair[1]['values'][seed] for seed in range(3)] for pair in pairs]
    of_shares = statistics.estimate_mean(shares @ by_column)
    assert shared.paired == pytest.approx(of_shares)
    # Users of two genres are the same, unlike images.
    people = [tuple(cell | {'metric': 'rmse'} for cell in pair) for pair in pairs]
    assert comparison.compare_over_columns(people).bootstrap[:2] != pytest.approx(expected)


def test_columns_of_other_seeds_teachers_or_errors_have_no_mean_or_no_bootstrap():
    one, other = (make_measured_cell(draw_rounded((4, 12), key=key), [0, 1, 0, 1]) for key in (1, 2))
    pair = (one, other)
    assert comparison.compare_over_columns([pair, pair]).bootstrap == comparison.compare(one, other).bootstrap
    assert comparison.compare_over_columns([pair, (one | {'seeds': [0, 1, 2, 9]}, other)]) is None
    compared = comparison.compare_over_columns([pair, (one | {'errors': None}, other)])
    assert compared.bootstrap is None and compared.paired.count == 4
    # Student 0 shares a teacher with 2 in one column and with 3 in the other, so all four are one cluster.
    compared = comparison.compare_over_columns([pair, (one | {'teachers': [0, 1, 1, 0]}, other)])
    assert (compared.paired.count, compared.paired.clusters, compared.p_value) == (4, 1, None)
    assert compared.verdict(True) == statistics.TOO_FEW


def test_another_row_may_be_the_baseline():
    rows = {row: None for row in tables.TABLES['3'].rows if row != 'Teacher'}
    results = {
        '3': {GENRE: rows | {'LD': make_cell(0.9), 'TD': make_cell(0.88), 'FD': make_cell(0.9, seeds=(7, 8))}}
    }
    text = render.make(['3'], results, ['Drama'], ['CIFAR10'], 'LD')
    assert 'ours, Δ to LD, mean ± 95%' in text
    text, counted = text.split('### Compared with LD, in 1 column\n')
    assert find_cells(text, 'TD')[3] == '-0.0200 ± 0.0000'
    assert find_cells(text, 'FD')[3] == '+0.0000, not paired'
    # The paper's differences are to the same row.
    assert (
        find_cells(text, 'TD')[-1]
        == f'{PAPER["3"]["rows"]["TD"][0][0] - PAPER["3"]["rows"]["LD"][0][0]:+.4f}'
    )
    assert TD_IS_TOO_FEW in counted
    with pytest.raises(UserError, match=r'--baseline .TDD. is not known\. Did you mean TD\?'):
        render.make(['3'], results, ['Drama'], ['CIFAR10'], 'TDD')
    for name, row in (('3', 'Teacher'), ('5', 'LD')):
        with pytest.raises(UserError, match=f"--baseline '{row}' is not known"):
            comparison.check_baseline(['digits', '3', name], row)
    with pytest.raises(UserError, match='table 1 is made of others and has no --baseline'):
        comparison.check_baseline(['1'], 'LD')
    comparison.check_baseline(['1', '3'], None)


def test_more_is_better_where_the_metric_is_accuracy():
    table = tables.TABLES['digits']
    rows = dict.fromkeys(table.rows) | {
        row: make_cell(np.mean(values), range(3)) | {'metric': 'accuracy', 'values': values}
        for row, values in ((SCRATCH, [0.5, 0.5, 0.5]), ('TD', [0.75, 0.78, 0.76]))
    }
    text, counted = render.render_runs('digits', table, {'5 to 9': rows}).split('### Compared with')
    assert '\n- TD: 1 better, 0 n.s., 0 worse\n' in counted
    assert 'resamples images and seeds' in text


def test_known_and_unknown_users_have_columns_where_both_are_there():
    groups = {
        'known_users': {'count': 5, 'values': [0.9, 1.0]},
        'unknown_users': {'count': 7, 'values': [1.25, 1.25]},
    }
    one = {'known_users': {'count': 12, 'values': [1.0, 1.0]}}
    values = draw_rounded((2, 12))
    cells = {
        1: {SCRATCH: make_measured_cell(values, groups=groups), 'TD': make_measured_cell(values), 'LD': None},
        2: {SCRATCH: make_measured_cell(values, groups=one)},
    }
    both, one_alone = render_table_3(cells).split('### ')[1:3]
    assert find_cells(both, 'method')[6:8] == [
        'ours, known users, mean ± 95%',
        'ours, unknown users, mean ± 95%',
    ]
    # 12.7062 times 0.05.
    assert find_cells(both, SCRATCH)[6:8] == ['0.9500 ± 0.6353', '1.2500 ± 0.0000']
    assert (
        find_cells(both, 'TD')[6:8]
        == find_cells(both, 'LD')[6:8]
        == find_cells(both, 'Teacher')[6:8]
        == ['', '']
    )
    assert 'examples: 5 of known users, 7 of unknown users.' in both
    assert 'known' not in one_alone
    # Groups of only some seeds are left out.
    groups['known_users']['values'] = [0.9]
    assert 'known' not in render_table_3(cells)


@pytest.mark.parametrize('name', DERIVED)
def test_a_derived_table_is_the_mean_improvement(name):
    table = DERIVED[name]
    of_paper = name in PAPER
    columns = [*table.groups, *(['Avg.'] if of_paper else []), *table.contrasts]
    assert not of_paper or [*columns[:-1]] == PAPER[name]['columns']
    assert not of_paper or list(table.rows) == list(PAPER[name]['rows'])
    # An RMSE reduced by 10% in the dense column; by 0, 5, 10 and 15% in the sparse ones; an accuracy of 50%
    # raised by 20% in every image column.
    gains = {GENRE: 0.1, 'Genre 5': 0.0, 'Genre 6': 0.05, 'Genre 7': 0.1, 'Genre 8': 0.15}
    results = {}

    def make_cell_of_three(mean, shift):
        """A result of three seeds with a mean, the same shift from it for all."""
        return {'mean': mean, 'seeds': [0, 1, 2], 'values': [mean - shift, mean, mean + shift]}

    for group in table.groups.values():
        baseline_table, baseline_row = group.baseline
        for column in group.columns:
            for rows in table.rows.values():
                better = 2.0 * (1 - gains[column]) if column in gains else 0.6
                cells = results.setdefault(group.source, {}).setdefault(column, {})
                assert rows[group.source] in tables.TABLES[group.source].rows
                cells[rows[group.source]] = make_cell_of_three(better, 0.02)
            cells = results.setdefault(baseline_table, {}).setdefault(column, {})
            cells[baseline_row] = make_cell_of_three(2.0 if column in gains else 0.5, 0.01)
    text = render.render_derived(name, table, results)
    step = 2 if of_paper else 1
    for row in table.rows:
        cells = find_cells(text, row)[1:]
        ours = dict(zip(columns, cells[::step], strict=True))
        # The differences of three seeds are -0.01, 0 and 0.01 around their mean, so their standard error is
        # 0.01 / sqrt(3), and t(0.975) of two degrees of freedom is 4.302653: 0.0248415.
        dense, image = 100 * 0.0248415 / 2.0, 100 * 0.0248415 / 0.5
        assert ours['ML(Dense)'] == f'+10.00 ± {dense:.2f} (3)'
        assert ours['ML(Sparse)'] == f'+7.50 ± {dense:.2f} (3)'
        # All columns go up and down together, so their difference does not move.
        assert ours['ML(Sparse) minus ML(Dense)'] == '-2.50 ± 0.00 (3)'
        if not of_paper:
            continue
        assert ours['CIFAR10'] == f'+20.00 ± {image:.2f} (3)'
        # A higher RMSE is a lower improvement, so two of the five columns move the other way.
        assert ours['Avg.'] == f'{(10 + 7.5 + 3 * 20) / 5:+.2f} ± {(3 * image - 2 * dense) / 5:.2f} (3)'
        paper = [value for value, _ in PAPER[name]['rows'][row]]
        assert cells[1::2] == [f'{value:+.2f}' for value in (*paper, paper[1] - paper[0])]

    sparse = table.groups['ML(Sparse)']
    results[sparse.source][sparse.columns[0]] = {}
    text = render.render_derived(name, table, results)
    ours = dict(zip(columns, find_cells(text, row)[1::step], strict=True))
    assert {ours[column] for column in ours if 'Sparse' in column or column == 'Avg.'} == {'missing'}
    assert ours['ML(Dense)'].startswith('+10.00 ± ')


def test_an_improvement_is_relative_to_the_same_seeds_of_a_table_with_more():
    few, many = draw_rounded((2, 12), low=0.5, key=3), draw_rounded((4, 12), low=0.5, key=4)
    results = {
        '5_user': {GENRE: {'1 iteration': make_measured_cell(few, [0, 1])}},
        '3_user': {GENRE: {SCRATCH: make_measured_cell(many)}},
    }
    text = render.make(['2_user'], results, ['Drama'], [])
    baseline = np.sqrt(many[:2].mean(axis=1))
    expected = statistics.estimate_mean(100 * (baseline - np.sqrt(few.mean(axis=1))) / baseline.mean())
    assert find_cells(text, '1 iteration')[1].split('; ')[0] == (
        f'{expected.mean:+.2f} ± {expected.half_width:.2f} (2)'
    )
    cut = comparison.compare(make_measured_cell(few, [0, 1]), make_measured_cell(many[:2])).bootstrap
    low, high = (-100 * bound / baseline.mean() for bound in (cut.high, cut.low))
    assert find_cells(text, '1 iteration')[1].split('; ')[1] == f'{low:+.2f} to {high:+.2f}'
    assert find_cells(text, '1 iteration')[2:] == ['missing', 'missing']


def test_an_improvement_over_other_seeds_has_no_interval():
    table = tables.TABLES['1']
    group = table.groups['CIFAR10']
    results = {'4': {'CIFAR10': {'LD': make_cell(0.6), 'No distillation': make_cell(0.5, seeds=(7, 8))}}}
    ((share, _),) = render.relative_gain(group, table.rows['LD'], results)
    assert share == pytest.approx(200.0)
    text = render.render_derived('1', table, results)
    columns = [*PAPER['1']['columns'], *table.contrasts]
    ours = dict(zip(columns, find_cells(text, 'LD')[1::2], strict=True))
    assert ours['CIFAR10'] == '+20.00'


def test_a_search_is_compared_with_its_own_baseline_and_its_spread_is_shown():
    table = tables.TABLES['3_searches']
    means = {
        'Genre 1': {SCRATCH: (1.0, 0.96, 1.03), 'LD': (0.98, 0.97, 1.0), 'TD': (0.99, 0.95, 1.0)},
        'Genre 8': {SCRATCH: (2.0, 2.0, 2.0), 'LD': (1.98, 1.99, 2.0), 'TD': (1.97, 1.98, 1.99)},
    }
    results = {
        column: dict.fromkeys(table.rows)
        | {
            one: make_cell(mean)
            for row, of_row in rows.items()
            for one, mean in zip((row, *table.repeated[row]), of_row, strict=True)
        }
        for column, rows in means.items()
    }
    text = render.render_runs('3_searches', table, results)
    of_drama, _ = text.split('### Genre 8')
    for row, difference in (
        ('LD', '-0.0200'),
        ('LD (sampler seed 1)', '+0.0100'),
        ('LD (sampler seed 2)', '-0.0300'),
        # No distillation with another search is compared with the usual no distillation.
        (f'{SCRATCH} (sampler seed 1)', '-0.0400'),
    ):
        assert find_cells(of_drama, row)[3].startswith(difference)
    _, over = text.split('### Mean over 2 columns')
    over, spread = over.split('### Spread over searches')
    assert find_cells(over, 'TD (sampler seed 1)')[2].startswith('-0.0150')
    # TD + LD is missing.
    assert [line for line in spread.splitlines() if line.startswith('- ')] == [
        '- LD: -0.0200, +0.0000, -0.0150; 0.0200 apart',
        '- TD: -0.0200, -0.0150, -0.0200; 0.0050 apart',
    ]
    assert 'Spread' not in render.render_runs('3_searches', table._replace(repeated={}), results)
