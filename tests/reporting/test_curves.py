"""The curves of a row: means over seeds at the steps where all of its runs have a number."""

import math

from etils import epath

from td_jax.reporting import curves, runs, settings


def find_row(root):
    found_runs = runs.find_runs(epath.Path(root)).runs
    ((row,),) = (setting.rows for setting in settings.make_settings(found_runs, {}))
    return row


def test_a_mean_is_over_seeds_and_a_band_from_the_lowest_to_the_highest(write_run, tmp_path):
    def make_line(step, *values):
        mean = sum(values) / len(values)
        return {'step': step, 'loss': mean, **{f'loss/seed_{i}': v for i, v in enumerate(values)}}

    write_run(
        tmp_path / 'a',
        [0.5, 0.5],
        lines=[make_line(2, 1.0, 3.0), make_line(4, 1.0, 1.0), make_line(6, 9.0, 9.0)],
    )
    # With NaN, a huge number, and steps that it lacks, which are left out.
    lines = [
        make_line(2, 8.0),
        {**make_line(4, 4.0), 'share_task': 0.5, 'share_state': 0.5},
        {'step': 6, 'loss': math.nan},
        {'step': 4, 'share_state': 1e300},
    ]
    write_run(tmp_path / 'b', [0.5], lines=lines, seed=9)
    row = find_row(tmp_path)
    curve = curves.mean_curve(row, 'loss', 'name')
    # Two seeds of a, one of b.
    assert curve == ('name', ((2, 4.0), (4, 2.0)), ((2, 1.0, 8.0), (4, 1.0, 4.0)))
    assert curves.mean_curve(row, 'share_task', 'task') == ('task', ((4, 0.5),), ())
    assert curves.mean_curve(row, 'other', '') is None
    assert curves.term_names(row) == ['task', 'state']


def test_runs_without_a_step_in_common_have_no_curve(write_run, tmp_path):
    for name, step in (('a', 2), ('b', 3)):
        write_run(tmp_path / name, None, lines=[{'step': step, 'loss': 1.0}])
    assert curves.mean_curve(find_row(tmp_path), 'loss', '') is None
