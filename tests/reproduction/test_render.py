"""Tables as Markdown: what is missing, what is a difference, and the paper's numbers beside ours."""

import json

import numpy as np
import pytest
import scipy.stats

from td_jax.reproduction import render, tables

PAPER = json.loads(tables.PAPER.read_text())['tables']
DERIVED = {name: t for name, t in tables.TABLES.items() if isinstance(t, tables.Derived)}
GENRE, SCRATCH = 'Genre 1', 'Train from scratch'


def fake(mean, seeds=(0, 1), teacher=0.9):
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


def cells_of(text, row):
    """The cells of a row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_a_table_shows_the_papers_numbers_and_what_is_missing():
    table = tables.TABLES['3']
    rows = {row: None for row in table.rows} | {SCRATCH: fake(1.0), 'TD': fake(0.98)}
    rows['Teacher'] = {'mean': 0.9, 'stderr': None}
    text = render.of_runs('3', table, {GENRE: rows})
    # t(0.975) of one degree of freedom is 12.7062, the standard error 0.01.
    assert cells_of(text, 'TD') == [
        'TD',
        '2',
        '0.9800 ± 0.1271',
        '-0.0200 ± 0.0000',
        '0.9965 ± 0.0001',
        '-0.0137',
    ]
    assert cells_of(text, 'LD')[1:4] == ['', 'missing', '']
    assert cells_of(text, 'LD')[4].startswith('1.0083')
    assert cells_of(text, 'Teacher')[1:4] == ['1', '0.9000', '-0.1000, not paired']
    assert cells_of(text, SCRATCH) == [SCRATCH, '2', '1.0000 ± 0.1271', '', '1.0102 ± 0.0003', '']
    assert cells_of(text, 'method') == [
        'method',
        'n',
        'ours, mean ± 95%',
        'ours, paired difference to Train from scratch, mean ± 95%',
        'paper, mean ± standard error',
        'paper, difference',
    ]
    assert 'test rmse. ± is half of the 95% t interval over the n seeds' in text
    assert f'### {GENRE} (Drama)' in text


def test_without_its_baseline_a_row_has_no_difference():
    table = tables.TABLES['3']
    text = render.of_runs('3', table, {GENRE: {row: None for row in table.rows} | {'TD': fake(0.98)}})
    assert cells_of(text, SCRATCH)[1:4] == ['', 'missing', '']
    assert cells_of(text, 'TD')[1:4] == ['2', '0.9800 ± 0.1271', '']


def test_a_difference_has_the_interval_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=5), rng.normal(size=5)
    table = tables.TABLES['digits']
    rows = dict.fromkeys(table.rows)
    for row, values in ((SCRATCH, theirs), ('TD', ours)):
        rows[row] = fake(values.mean(), seeds=range(5)) | {'values': list(values)}
    text = render.of_runs('digits', table, {'5 to 9': rows})
    interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    half = (interval.high - interval.low) / 2
    assert cells_of(text, 'TD')[1] == '5'
    assert cells_of(text, 'TD')[3] == f'{(interval.high + interval.low) / 2:+.4f} ± {half:.4f}'


def test_other_seeds_cannot_be_paired():
    assert render.difference(fake(1.0), fake(1.25, seeds=(3, 4))) == '-0.2500, not paired'


def test_one_seed_has_no_interval():
    table = tables.TABLES['digits']
    one = fake(0.9, seeds=(0,)) | {'values': [0.9]}
    text = render.of_runs('digits', table, {'5 to 9': {row: one for row in table.rows}})
    assert cells_of(text, 'LD') == ['LD', '1', '0.9000', '+0.0000']


def test_the_teachers_row_is_what_another_row_says_of_it():
    table = tables.TABLES['3']

    def rows_of(scores):
        results = {row: None for row in table.rows if row != 'Teacher'}
        results |= {row: fake(1.0, teacher=score) for row, score in scores.items()}
        return render.with_teacher(table, {GENRE: results})[GENRE]

    rows = rows_of({SCRATCH: None, 'LD': 0.8, 'TD': 0.8})
    assert rows['Teacher'] == {'mean': 0.8, 'stderr': None}
    assert rows['FD'] is None
    assert list(rows) == list(table.rows)
    assert rows_of({SCRATCH: None})['Teacher'] is None


def test_a_table_the_paper_does_not_have_shows_ours_alone():
    table = tables.TABLES['digits']
    text = render.of_runs('digits', table, {'5 to 9': {row: fake(0.9) for row in table.rows}})
    assert cells_of(text, 'LD') == ['LD', '2', '0.9000 ± 0.1271', '+0.0000 ± 0.0000']
    assert 'paper' not in text


@pytest.mark.parametrize('name', DERIVED)
def test_a_derived_table_is_the_mean_improvement(name):
    table = DERIVED[name]
    assert list(table.rows) == list(PAPER[name]['rows'])
    assert [*table.groups, 'Avg.'] == PAPER[name]['columns']
    # An RMSE reduced by 10% in the dense column; by 0, 5, 10 and 15% in the sparse ones; an accuracy of 50%
    # raised by 20% in every image column.
    gains = {GENRE: 0.1, 'Genre 5': 0.0, 'Genre 6': 0.05, 'Genre 7': 0.1, 'Genre 8': 0.15}
    results = {}

    def of_three(mean, shift):
        """A result of three seeds with a mean, the same shift from it for all."""
        return {'mean': mean, 'seeds': [0, 1, 2], 'values': [mean - shift, mean, mean + shift]}

    for group in table.groups.values():
        baseline_table, baseline_row = group.baseline
        for column in group.columns:
            for rows in table.rows.values():
                better = 2.0 * (1 - gains[column]) if column in gains else 0.6
                cells = results.setdefault(group.source, {}).setdefault(column, {})
                assert rows[group.source] in tables.TABLES[group.source].rows
                cells[rows[group.source]] = of_three(better, 0.02)
            cells = results.setdefault(baseline_table, {}).setdefault(column, {})
            cells[baseline_row] = of_three(2.0 if column in gains else 0.5, 0.01)
    text = render.of_others(name, table, results)
    columns = PAPER[name]['columns']
    for row, paper in PAPER[name]['rows'].items():
        cells = cells_of(text, row)[1:]
        ours, theirs = dict(zip(columns, cells[::2], strict=True)), cells[1::2]
        # The differences of three seeds are -0.01, 0 and 0.01 around their mean, so their standard error is
        # 0.01 / sqrt(3), and t(0.975) of two degrees of freedom is 4.302653: 0.0248415.
        dense, image = 100 * 0.0248415 / 2.0, 100 * 0.0248415 / 0.5
        assert ours['ML(Dense)'] == f'+10.00 ± {dense:.2f} (3)'
        assert ours['ML(Sparse)'] == f'+7.50 ± {dense:.2f} (3)'
        assert ours['CIFAR10'] == f'+20.00 ± {image:.2f} (3)'
        # A higher RMSE is a lower improvement: of the five columns two go the other way.
        assert ours['Avg.'] == f'{(10 + 7.5 + 3 * 20) / 5:+.2f} ± {(3 * image - 2 * dense) / 5:.2f} (3)'
        assert theirs == [f'{value:+.2f}' for value, _ in paper]

    sparse = table.groups['ML(Sparse)']
    results[sparse.source][sparse.columns[0]] = {}
    text = render.of_others(name, table, results)
    ours = dict(zip(columns, cells_of(text, row)[1::2], strict=True))
    assert (ours['ML(Sparse)'], ours['Avg.']) == ('missing', 'missing')
    assert ours['ML(Dense)'].startswith('+10.00 ± ')


def test_an_improvement_over_other_seeds_has_no_interval():
    table = tables.TABLES['1']
    group = table.groups['CIFAR10']
    results = {'4': {'CIFAR10': {'LD': fake(0.6), 'No distillation': fake(0.5, seeds=(7, 8))}}}
    assert render.improvements(group, table.rows['LD'], results) == {None: pytest.approx(20.0)}
    text = render.of_others('1', table, results)
    columns = PAPER['1']['columns']
    ours = dict(zip(columns, cells_of(text, 'LD')[1::2], strict=True))
    assert ours['CIFAR10'] == '+20.00'
