"""The numbers under docs/results are of the knobs of today, and its tables are what their command prints."""

import pathlib

import pytest
from etils import epath

from td_jax.reproduction import cells, errors, tables
from tests import forked

RESULTS = pathlib.Path(__file__).parents[2] / 'docs' / 'results'
FILES = sorted(path.name for path in RESULTS.glob('*.npz'))
SHOWN = sorted(path.stem.removeprefix('table_') for path in RESULTS.glob('table_*.md'))


@pytest.mark.parametrize('name', FILES)
def test_cells_are_of_the_runs_that_their_knobs_give(name, request):
    if name.startswith('movielens'):
        # The number of steps of a genre is that of its ratings.
        request.getfixturevalue('movielens_data')
    # Of each table one column, since the knobs of all are the same, and reading them takes a while.
    first = {
        table: next(iter(columns.items()))
        for table, columns in errors.read(epath.Path(RESULTS / name)).items()
    }
    kept = {
        (table, column, row): tuple(cell['runs'])
        for table, (column, rows) in first.items()
        for row, cell in rows.items()
        if cell
    }
    assert kept
    today = {
        (table, column, row): tuple(cells.names_of(cells.runs_of(tables.TABLES[table], column, row)))
        for table, column, row in kept
    }
    assert kept == today


@pytest.mark.long
@pytest.mark.parametrize('name', SHOWN)
def test_a_table_is_what_its_command_prints(name):
    (kept,) = [file for file in FILES if name in errors.read(epath.Path(RESULTS / file))]
    command = ['-m', 'td_jax.reproduce', f'--tables={name}', f'--from_errors={RESULTS / kept}']
    out, err = forked.start(command).communicate()
    committed = (RESULTS / f'table_{name}.md').read_text()
    # Which sign a difference of nothing has is that of the last bits, which are the processor's.
    assert [text.replace('-0.0000', '+0.0000') for text in (out, err)] == [
        committed.replace('-0.0000', '+0.0000'),
        '',
    ]
