"""Figures of tables: what is drawn, and what is refused."""

import numpy as np
import pytest
import scipy.stats
from etils import epath

from td_jax import statistics
from td_jax.errors import UserError
from td_jax.reproduction import errors, figures, tables

SCRATCH = 'Train from scratch'


def make_result(values, seeds=(0, 1, 2), wrong=None):
    """A cell with these values; `wrong` [seeds, users] are squared errors of one rating per user."""
    cell = {'values': list(values), 'mean': float(np.mean(values)), 'seeds': list(seeds), 'metric': 'rmse'}
    return cell | {'errors': None if wrong is None else errors.sum_by_unit(wrong, np.arange(wrong.shape[1]))}


def test_points_are_paired_differences_with_both_intervals():
    rng = np.random.default_rng(0)
    squared = {name: rng.random((3, 40)) for name in ('base', 'ours')}
    values = {name: np.sqrt(user_errors.mean(axis=1)) for name, user_errors in squared.items()}
    rows = {
        SCRATCH: make_result(values['base'], wrong=squared['base']),
        'LD': make_result(values['ours'], wrong=squared['ours']),
    }
    others = {
        'TD': make_result([0.5, 0.6, 0.7], seeds=(3, 4, 5)),
        'FD': None,
        'FitNet': make_result([1.0, 0.9, 0.7]),
    }
    points_by_row = figures.points(
        tables.TABLES['3'], {'Genre 8': rows | others, 'Genre 1': {SCRATCH: None, 'LD': rows['LD']}}
    )
    # TD has other seeds, and the other genre has no baseline.
    assert points_by_row.keys() == {'LD', 'FitNet'}
    (ld,), (fitnet,) = points_by_row['LD'], points_by_row['FitNet']
    assert ld.column == 'War'
    expected = scipy.stats.ttest_rel(values['ours'], values['base'])
    interval = expected.confidence_interval()
    np.testing.assert_allclose(ld.mean, (interval.low + interval.high) / 2)
    np.testing.assert_allclose(ld.half_width, (interval.high - interval.low) / 2)
    sums = [statistics.Sums(rows[row]['errors']['sums'], np.ones(40)) for row in ('LD', SCRATCH)]
    assert ld.bootstrap == statistics.bootstrap_difference(*sums, [0, 1, 2], 'rmse').bounds()
    assert fitnet.bootstrap is None


def test_a_figure_is_drawn_whatever_is_missing(tmp_path):
    rows = {
        SCRATCH: make_result([1.0, 0.9, 0.7]),
        **{row: make_result([0.9, 0.9, 0.8]) for row in ('LD', 'FD')},
    }
    figures.draw_all(['3'], {'3': {'Genre 1': rows, 'Genre 8': {SCRATCH: None}}}, epath.Path(tmp_path), None)
    (path,) = tmp_path.iterdir()
    assert path.name == 'table_3.png'
    picture = path.read_bytes()
    assert picture.startswith(b'\x89PNG')
    # Wider than high: two panels side by side.
    assert int.from_bytes(picture[16:20], 'big') > int.from_bytes(picture[20:24], 'big') > 300
    # Compared with another row, this row has no panel, and the figure has another name.
    del rows['LD']
    figures.draw_all(['3'], {'3': {'Genre 1': rows}}, epath.Path(tmp_path), 'FD')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['table_3.png', 'table_3_vs_fd.png']


def test_a_row_far_away_leaves_the_others_to_see(tmp_path, monkeypatch):
    near = [[figures.Point('War', 0.001 * i, 0.002, (-0.0034, 0.001))] for i in range(3)]
    rows = dict(zip('abc', near, strict=True))
    assert figures.linear_limit(rows) is None
    # The median row, as the furthest of the near ones, reaches 0.004.
    assert figures.linear_limit(rows | {'d': [figures.Point('War', 0.1, 0.2, None)]}) == pytest.approx(0.004)
    assert figures.linear_limit(rows | {'d': [figures.Point('War', 0.0, 0.013, None)]}) is None
    same = {'same': [figures.Point('War', 0.0, 0.0, None)]}
    assert figures.linear_limit(same) is None
    assert figures.linear_limit(same | {'a': near[0], 'd': [figures.Point('War', 0.1, 0.2, None)]}) is None
    base = {
        SCRATCH: make_result([1.0, 0.9, 0.7]),
        'LD': make_result([1.0, 0.9, 0.7001]),
        'FD': make_result([1.0, 0.9, 0.7002]),
    }
    scales = []
    monkeypatch.setattr(
        'matplotlib.figure.Figure.savefig', lambda figure, *_, **__: scales.append(read_scales(figure))
    )
    for rows_of_genre in (base, base | {'TD': make_result([2.0, 1.5, 1.9])}):
        figures.draw('3', tables.TABLES['3'], {'Genre 1': rows_of_genre}, tmp_path / 'picture')
    assert scales[0] == ({'linear'}, False)
    assert scales[1] == ({'symlog'}, True)


def test_the_lowest_panel_names_the_columns(tmp_path, monkeypatch):
    named = []

    def keep(figure, *_, **__):
        figure.draw_without_rendering()
        named.extend(any(label.get_visible() for label in axes.get_xticklabels()) for axes in figure.axes)

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', keep)
    rows = ('LD', 'FD', 'FitNet', 'Hybrid', 'TD')
    cells = {SCRATCH: make_result([1.0, 0.9, 0.7]), **{row: make_result([0.9, 0.9, 0.8]) for row in rows}}
    figures.draw('3', tables.TABLES['3'], {'Genre 1': cells}, tmp_path / 'picture')
    # Four panels and below them one, under the first.
    assert named[:5] == [False, True, True, True, True]


def read_scales(figure):
    """(the scales of a figure's panels, whether its title mentions a logarithmic part)."""
    return {axes.get_yscale() for axes in figure.axes}, 'logarithmic beyond' in figure.get_suptitle()


def test_what_cannot_be_drawn_is_refused(tmp_path):
    figures.check(['3', 'digits'], epath.Path(tmp_path), None)
    with pytest.raises(UserError, match='table 1 is made of others and has no figure'):
        figures.check(['3', '1'], epath.Path(tmp_path), None)
    with pytest.raises(
        UserError, match=r'--figures .*none/table_3\.png cannot be written: its folder is missing'
    ):
        figures.check(['3'], epath.Path(tmp_path / 'none'), None)
    with pytest.raises(UserError, match='table 3 has no row with the seeds of Train from scratch'):
        figures.draw_all(['3'], {'3': {'Genre 1': {SCRATCH: None}}}, epath.Path(tmp_path), None)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_has_a_panel_a_column_and_a_line_for_each_number_of_rounds(tmp_path, monkeypatch):
    panels = []

    def keep(figure, *_, **__):
        panels.extend(
            (
                axes.get_title(),
                axes.get_xscale(),
                [[bars.get_label(), *bars.lines[0].get_ydata()] for bars in axes.containers],
            )
            for axes in figure.axes
        )

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', keep)
    table = tables.TABLES['interact_user']
    cells = {table.baseline: make_result([1.0, 0.9, 0.7])}
    for place, rounds in enumerate((1, 2)):
        for power, weight in enumerate((0.1, 1, 10)):
            row = f'{rounds} round{"s" * (rounds > 1)}, interact {weight:g}'
            cells[row] = make_result(
                np.array([1.0, 0.9, 0.7]) + 0.01 * power + 0.1 * place + [0.0, 0.0, 0.003]
            )
    figures.draw('interact_user', table, {'Genre 1': cells, 'Genre 8': cells}, tmp_path / 'picture')
    assert [(title, scale) for title, scale, _ in panels] == [('Drama', 'log'), ('War', 'log')]
    for _, _, lines in panels:
        assert [label for label, *_ in lines] == ['td.rounds 1', 'td.rounds 2']
        np.testing.assert_allclose(
            [means for _, *means in lines], [[0.001, 0.011, 0.021], [0.101, 0.111, 0.121]]
        )


def test_a_search_is_drawn_relative_to_its_own_baseline():
    table = tables.TABLES['3_searches']
    row = 'TD (sampler seed 1)'
    rows = {
        SCRATCH: make_result([1.0, 0.9, 0.7]),
        table.baseline_of(row): make_result([2.0, 1.9, 1.7]),
        row: make_result([2.1, 2.0, 1.8]),
    }
    points_by_row = figures.points(table, {'Genre 8': rows})
    assert points_by_row.keys() == {row, table.baseline_of(row)}
    assert points_by_row[row][0].mean == pytest.approx(0.1)
