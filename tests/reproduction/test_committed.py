"""The numbers under docs/results are of the configs of today; commands give the tables and choices again."""

import collections
import json
import pathlib
import re

import numpy as np
import pytest
from etils import epath

from td_jax.config import tree
from td_jax.reproduction import cells, errors, tables
from tests import forked

RESULTS = pathlib.Path(__file__).parents[2] / 'docs' / 'results'
FILES = sorted(path.name for path in RESULTS.glob('*.npz'))
# Files that were not yet measured again by today's protocol.
BY_FIRST_PROTOCOL = {name for name in FILES if not name.startswith('movielens_by_user')}
COMMITTED_TABLES = sorted(path.stem.removeprefix('table_') for path in RESULTS.glob('table_*.md'))
# The name of a run, as in the arguments of td_jax.cka.
RUN = re.compile(r'\b(?:td|fd)-[0-9a-f]{10}\b')


@pytest.mark.parametrize('name', FILES)
def test_cells_are_of_the_runs_of_todays_hyperparameters(name, request):
    if name.startswith('movielens'):
        # The number of steps of a genre depends on its number of ratings.
        request.getfixturevalue('movielens_data')
    # One column per table: all have the same hyperparameters, and counting the ratings of a genre takes long.
    first = {
        table: next(iter(columns.items()))
        for table, columns in errors.read(epath.Path(RESULTS / name)).items()
    }
    stored_cells = {
        (table, column, row): cell
        for table, (column, rows) in first.items()
        for row, cell in rows.items()
        if cell
    }
    stored_runs = {key: tuple(cell['runs']) for key, cell in stored_cells.items()}
    assert stored_runs
    protocol = tree.FIRST_PROTOCOL if name in BY_FIRST_PROTOCOL else {}
    runs_today = {}
    for (name_of, column, row), cell in stored_cells.items():
        assert cell.get('protocol', 1) == protocol.get('protocol', tree.PROTOCOL)
        table = tables.TABLES[name_of]
        if protocol:
            # Two of ten students had the same teacher, and of some tables there were five.
            table = table._replace(students=len(cell['seeds']), teachers=min(table.teachers, 5))
        runs = cells.runs_of(table, column, row)
        for config in runs:
            config.update_from_flattened_dict(protocol)
        runs_today[name_of, column, row] = tuple(cells.run_names(runs))
    assert stored_runs == runs_today


def test_the_runs_that_docs_name_are_those_of_the_cells():
    named = {name for page in RESULTS.parent.glob('*.md') for name in RUN.findall(page.read_text())}
    there = {
        run.rpartition('/')[2]
        for file in FILES
        for runs in cells.index_by_runs(errors.read(epath.Path(RESULTS / file)))
        for run in runs
    }
    assert named
    assert named <= there


@pytest.mark.long
@pytest.mark.parametrize('name', COMMITTED_TABLES)
def test_a_table_is_what_its_command_prints(name):
    (file_name,) = [file for file in FILES if name in errors.read(epath.Path(RESULTS / file))]
    command = ['-m', 'td_jax.reproduce', f'--tables={name}', f'--from_errors={RESULTS / file_name}']
    out, err = forked.start(command).communicate()
    # Which sign a difference of nothing has is that of the last bits, which are the processor's.
    committed = (RESULTS / f'table_{name}.md').read_text().replace('-0.0000', '+0.0000')
    assert (out.replace('-0.0000', '+0.0000'), err) == (committed, '')


@pytest.mark.usefixtures('movielens_data')
def test_the_choices_follow_from_the_journals_of_their_search(tmp_path):
    """Journals of another search than today's would be refused, or leave trials to run."""
    journals = sorted((RESULTS / 'search').glob('movielens_by_user-*.jsonl'))
    methods = [path.stem.rpartition('-')[2] for path in journals]
    output = tmp_path / 'choices.json'
    completed = forked.run(
        [
            *('-m', 'td_jax.tune', '--config=movielens', '--split_by=user', '--trials=12', '--steps=800'),
            f'--methods={",".join(methods)}',
            *(f'--workdir={tmp_path}', f'--journals={RESULTS / "search"}', f'--output={output}'),
            '--only_show',
        ]
    )
    assert completed.returncode == 0, completed.stderr
    choices = json.loads(output.read_text())['movielens_by_user']
    assert choices == cells.read_tuned('movielens')['movielens_by_user']
    assert choices.keys() == {*methods, 'searched'}
    for method, path in zip(methods, journals, strict=True):
        curves, values, on_last_rung = collections.defaultdict(list), {}, set()
        for line in map(json.loads, path.read_text().splitlines()):
            curves[line['trial']].append(list(line['curve'].values()))
            steps, values[line['trial']] = list(map(int, line['curve'])), line['values']
            if line['rung'] == 2:
                on_last_rung.add(line['trial'])
        assert len(on_last_rung) == 3
        means = {trial: np.mean(curves[trial], axis=0) for trial in on_last_rung}
        best = min(means, key=lambda trial: means[trial].min())
        expected = values[best] | {'num_steps': steps[means[best].argmin()]}
        prefix = 'teacher.' if method == 'teacher' else ''
        assert choices[method] == {f'{prefix}{key}': value for key, value in expected.items()}
