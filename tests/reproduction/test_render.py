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


def test_the_difference_is_paired():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=5), rng.normal(size=5)
    result = {'values': list(ours), 'seeds': [0, 1, 2, 3, 4], 'mean': ours.mean()}
    baseline = {'values': list(theirs), 'seeds': [0, 1, 2, 3, 4], 'mean': theirs.mean()}
    mean, stderr = render.paired_difference(result, baseline)
    assert mean == pytest.approx(np.mean(ours - theirs))
    # The statistic of a paired t-test is their quotient.
    assert mean / stderr == pytest.approx(scipy.stats.ttest_rel(ours, theirs).statistic)


def test_other_seeds_cannot_be_paired():
    mean, stderr = render.paired_difference(fake(1.0), fake(1.25, seeds=(3, 4)))
    assert (mean, stderr) == (pytest.approx(-0.25), None)


def test_a_table_shows_the_papers_numbers_and_what_is_missing():
    table = tables.TABLES['3']
    rows = {row: None for row in table.rows} | {SCRATCH: fake(1.0), 'TD': fake(0.98)}
    rows['Teacher'] = {'mean': 0.9, 'stderr': None}
    text = render.of_runs('3', table, {GENRE: rows})
    assert cells_of(text, 'TD') == [
        'TD',
        '0.9800 ± 0.0100',
        '-0.0200 ± 0.0000',
        '0.9965 ± 0.0001',
        '-0.0137',
    ]
    assert cells_of(text, 'LD')[1:3] == ['missing', '']
    assert cells_of(text, 'LD')[3].startswith('1.0083')
    assert cells_of(text, 'Teacher')[1:3] == ['0.9000', '-0.1000']
    assert cells_of(text, SCRATCH) == [SCRATCH, '1.0000 ± 0.0100', '', '1.0102 ± 0.0003', '']
    assert 'test rmse, 2 seeds' in text
    assert f'### {GENRE} (Drama)' in text


def test_without_its_baseline_a_row_has_no_difference():
    table = tables.TABLES['3']
    text = render.of_runs('3', table, {GENRE: {row: None for row in table.rows} | {'TD': fake(0.98)}})
    assert cells_of(text, SCRATCH)[1:3] == ['missing', '']
    assert cells_of(text, 'TD')[1:3] == ['0.9800 ± 0.0100', '']


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
    assert cells_of(text, 'LD') == ['LD', '0.9000 ± 0.0100', '+0.0000 ± 0.0000']
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
    for group in table.groups.values():
        baseline_table, baseline_row = group.baseline
        for column in group.columns:
            for rows in table.rows.values():
                better = 2.0 * (1 - gains[column]) if column in gains else 0.6
                cells = results.setdefault(group.source, {}).setdefault(column, {})
                assert rows[group.source] in tables.TABLES[group.source].rows
                cells[rows[group.source]] = {'mean': better}
            cells = results.setdefault(baseline_table, {}).setdefault(column, {})
            cells[baseline_row] = {'mean': 2.0 if column in gains else 0.5}
    text = render.of_others(name, table, results)
    columns = PAPER[name]['columns']
    for row, paper in PAPER[name]['rows'].items():
        cells = cells_of(text, row)[1:]
        ours, theirs = dict(zip(columns, cells[::2], strict=True)), cells[1::2]
        assert (ours['ML(Dense)'], ours['ML(Sparse)'], ours['CIFAR10']) == ('+10.00', '+7.50', '+20.00')
        assert ours['Avg.'] == f'{(10 + 7.5 + 3 * 20) / 5:+.2f}'
        assert theirs == [f'{value:+.2f}' for value, _ in paper]

    sparse = table.groups['ML(Sparse)']
    results[sparse.source][sparse.columns[0]] = {}
    text = render.of_others(name, table, results)
    ours = dict(zip(columns, cells_of(text, row)[1::2], strict=True))
    assert (ours['ML(Dense)'], ours['ML(Sparse)'], ours['Avg.']) == ('+10.00', 'missing', 'missing')
