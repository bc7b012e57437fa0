"""The paper's tables: what to run, what is missing, the paper's numbers beside ours.

    python -m td_jax.reproduce --tables=3 --genres=Drama,War --workdir=runs/tables

Every cell is a run of td_jax.experiment in a folder of its own, so this may be interrupted and called
again; a folder's name holds a digest of its config, so a changed config is a new run. Tables are data: a
table names its config, what each column and each row changes in it, and the row that others are compared
with.
"""

import hashlib
import importlib
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from td_jax import command_line, evaluation, experiment, workdir
from td_jax import config as config_lib

GENRES = ('Drama', 'Comedy', 'Action', 'Thriller', 'Romance', 'Adventure', 'Sci-Fi', 'War')
PAPER = pathlib.Path(__file__).parent / 'paper_tables.json'
TUNED = pathlib.Path(__file__).parents[1] / 'configs' / 'tuned'
# The row whose number is the teacher's own score, which every distilled run reports.
TEACHER = 'teacher'


class Table(NamedTuple):
    """A table whose cells are runs."""

    title: str
    config: str  # a module of configs/
    columns: dict[str, dict]  # the paper's column -> what it changes
    rows: dict[str, dict | str]  # the paper's row -> what it changes, or TEACHER
    baseline: str  # the row that the others are compared with


class Derived(NamedTuple):
    """A table of relative improvements over a baseline, means over some columns of another table."""

    title: str
    source: str  # the table they come from
    baseline_table: str  # where the baseline's row is
    groups: dict[str, tuple[str, ...]]  # column -> columns of the source
    rows: dict[str, str]  # row -> row of the source


_GENRE_COLUMNS = {f'Genre {i + 1}': {'dataset.genre': genre} for i, genre in enumerate(GENRES)}
_GROUPS = {'ML(Dense)': ('Genre 1',), 'ML(Sparse)': ('Genre 5', 'Genre 6', 'Genre 7', 'Genre 8')}
_SCRATCH = {'Train from scratch': {'method': 'supervised'}}
_METHODS = {
    **_SCRATCH,
    'Teacher': TEACHER,
    'LD': {'method': 'ld'},
    'FD': {'method': 'fd'},
    'FitNet': {'method': 'fitnet'},
    'Hybrid': {'method': 'hybrid'},
    'TD': {'method': 'td'},
}
_TD = {'method': 'td'}

TABLES = {
    'digits': Table(
        'Handwritten digits 5 to 9 from ten examples each, taught by a teacher of 0 to 4',
        'digits',
        {'5 to 9': {}},
        {row: change for row, change in _METHODS.items() if change != TEACHER},
        'Train from scratch',
    ),
    '1': Derived(
        'Relative improvement over a student without distillation',
        '3',
        '3',
        _GROUPS,
        {row: row for row in ('LD', 'FD', 'FitNet', 'Hybrid', 'TD')},
    ),
    '2': Derived(
        'Relative improvement by number of rounds',
        '5',
        '3',
        _GROUPS,
        {
            'No interaction': 'No interactions',
            '1 iteration': '1 iteration',
            '>1 iterations': '2 to 3 iterations',
        },
    ),
    '3': Table(
        'MovieLens100k rating prediction by genre',
        'movielens',
        _GENRE_COLUMNS,
        _METHODS,
        'Train from scratch',
    ),
    '5': Table(
        'MovieLens100k by number of rounds',
        'movielens',
        _GENRE_COLUMNS,
        {
            'No interactions': {**_TD, 'td.rounds': 0},
            '1 iteration': {**_TD, 'td.rounds': 1},
            '2 to 3 iterations': {**_TD, 'td.rounds': 3},
        },
        'No interactions',
    ),
    '7': Table(
        'MovieLens100k without one of the consistency losses',
        'movielens',
        _GENRE_COLUMNS,
        {
            'No L_MC': {**_TD, 'td.weights.message': 0.0},
            'No L_SC': {**_TD, 'td.weights.state': 0.0},
            'TD': _TD,
        },
        'TD',
    ),
    '8': Table(
        'MovieLens100k with noise before interpreting, and with communication trained apart at first',
        'movielens',
        _GENRE_COLUMNS,
        {
            'Add noise': {**_TD, 'td.noise_std': 0.1},
            'No noise': _TD,
            'Train E, D separately': {**_TD, 'td.ramp_up': (200, 100)},
            'Train together': _TD,
        },
        'Train together',
    ),
}


# --- What to run -----------------------------------------------------------------------------------


def base_config(name: str):
    """The config of a module of configs/."""
    return importlib.import_module(f'configs.{name}').get_config()


def tuned(name: str) -> dict:
    """{column key: {method: {config key: value}}}, chosen on validation data by td_jax.tune."""
    return workdir.read_json(TUNED / f'{name}.json') or {}


def column_key(config) -> str:
    """What a config's tuned values are filed under."""
    return config.dataset.genre if config.dataset.name == 'movielens' else config.dataset.name


def apply_tuned(config, choices: dict, method: str):
    """Sets what was chosen for a method and for the teacher; lists in JSON are tuples in a config."""
    found = {**choices.get('teacher', {}), **choices.get(column_key(config), {}).get(method, {})}
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    )


def cell_config(table: Table, column: str, row: str):
    """The config of one cell: the table's, its column's, what was tuned for its method, its row's."""
    config = base_config(table.config)
    config.update_from_flattened_dict(table.columns[column])
    method = table.rows[row]['method']
    apply_tuned(config, tuned(table.config), method)
    config.update_from_flattened_dict(table.rows[row])
    return config


def digest(config) -> str:
    """A short name of a config's content."""
    return hashlib.sha256(config_lib.to_json(config).encode()).hexdigest()[:10]


def run_folder(root: pathlib.Path, config) -> pathlib.Path:
    """Where a cell's run is, by method and content."""
    return root / config.dataset.name / f'{config.method}-{digest(config)}'


def teacher_folder(root: pathlib.Path, config) -> pathlib.Path:
    """Where the teacher that these cells share is."""
    return root / config.dataset.name / f'teacher-{digest(config_lib.teacher_run(config))}'


def share_teacher(root: pathlib.Path, config) -> pathlib.Path:
    """Trains a config's teacher unless it is there; -> its folder."""
    teacher = shared_teacher_config(config)
    folder = teacher_folder(root, teacher)
    experiment.run(config_lib.teacher_run(teacher), folder)
    return folder


def shared_teacher_config(config):
    """`config` with everything that does not make its teacher at the project's default."""
    shared = base_config(config.dataset.name)
    shared.teacher = config.teacher.copy_and_resolve_references()
    shared.dataset.split = config.dataset.split
    for key in ('user_oov_rate', 'movie_oov_rate', 'min_title_word_count'):
        shared.dataset[key] = config.dataset[key]
    return shared


def run_cell(root: pathlib.Path, config) -> dict:
    """The result of a cell, run now if it is missing."""
    folder = run_folder(root, config)
    config = config.copy_and_resolve_references()
    if config.method != 'supervised':
        config.teacher.checkpoint = str(share_teacher(root, config))
    result = experiment.run(config, folder)
    # Hundreds of compiled programs in one process would fill the memory.
    jax.clear_caches()
    return result


def stored_cell(root: pathlib.Path, config) -> dict | None:
    """The result of a cell, or None where it is missing."""
    return workdir.read_json(run_folder(root, config) / workdir.RESULT)


# --- What came of it -------------------------------------------------------------------------------


def results_of(table: Table, columns, find) -> dict:
    """{column: {row: result or None}} by find(config); the teacher's row is what another row says of it."""
    results = {}
    for column in columns:
        results[column] = {
            row: find(cell_config(table, column, row))
            for row, change in table.rows.items()
            if change != TEACHER
        }
        for row, change in table.rows.items():
            if change == TEACHER:
                scores = [r['teacher'] for r in results[column].values() if r and r['teacher'] is not None]
                results[column][row] = {'mean': scores[0], 'stderr': None} if scores else None
    return results


def paired_difference(result: dict, baseline: dict):
    """Mean and standard error of the seeds' differences to the same seeds of a baseline."""
    if result.get('seeds') != baseline['seeds']:
        return result['mean'] - baseline['mean'], None
    return evaluation.mean_and_stderr(np.subtract(result['values'], baseline['values']))


def number(mean, stderr, signed=False) -> str:
    """A mean with its standard error, if it has one."""
    text = f'{mean:+.4f}' if signed else f'{mean:.4f}'
    return text if stderr is None else f'{text} ± {stderr:.4f}'


def render(name: str, table: Table, results: dict) -> str:
    """A table as Markdown, one block a column, the paper's numbers beside ours."""
    paper = json.loads(PAPER.read_text())['tables'].get(name)
    lines = [f'## {"Table " + name if paper else name}: {table.title}', '']
    for column, rows in results.items():
        change = ' '.join(str(value) for value in table.columns[column].values())
        shown = [result for result in rows.values() if result and 'values' in result]
        lines += [f'### {column} {f"({change})" if change else ""}'.rstrip(), '']
        if shown:
            lines += [f'{shown[0]["split"]} {shown[0]["metric"]}, {len(shown[0]["seeds"])} seeds', '']
        head = ['method', 'ours', f'ours, difference to {table.baseline}']
        head += ['paper', 'paper, difference'] if paper else []
        lines += [_row(head), _row(['---'] * len(head))]
        baseline = rows[table.baseline]
        for row in table.rows:
            result = rows[row]
            cells = [row, 'missing', '']
            if result:
                cells[1] = number(result['mean'], result['stderr'])
                if baseline and row != table.baseline:
                    cells[2] = number(*paired_difference(result, baseline), signed=True)
            if paper:
                mean, stderr = _paper_cell(paper, column, row)
                base, _ = _paper_cell(paper, column, table.baseline)
                cells += [number(mean, stderr), '' if row == table.baseline else f'{mean - base:+.4f}']
            lines.append(_row(cells))
        lines.append('')
    return '\n'.join(lines)


def render_derived(name: str, table: Derived, results: dict, baselines: dict) -> str:
    """A table of relative improvements as Markdown, computed from our own cells.

    Args:
      name: of the table.
      table: what it is made of.
      results: of the table it comes from.
      baselines: {column: result or None}, the student from scratch.
    """
    paper = json.loads(PAPER.read_text())['tables'][name]
    lines = [
        f'## Table {name}: {table.title}, percent',
        '',
        f'Ours is computed from our own Table {table.source}: the mean over the columns of the relative '
        'reduction of the RMSE. Image columns need their own tables.',
        '',
        _row(['method', *(f'{group}, {who}' for group in paper['columns'] for who in ('ours', 'paper'))]),
        _row(['---'] * (1 + 2 * len(paper['columns']))),
    ]
    for name_of_row, row in table.rows.items():
        cells = [name_of_row]
        for group, (value, _) in zip(paper['columns'], paper['rows'][name_of_row], strict=True):
            gains = [
                100 * (1 - results[column][row]['mean'] / baselines[column]['mean'])
                if results.get(column, {}).get(row) and baselines.get(column)
                else None
                for column in table.groups.get(group, (None,))
            ]
            cells += ['missing' if None in gains else f'{np.mean(gains):+.2f}', f'{value:+.2f}']
        lines.append(_row(cells))
    return '\n'.join([*lines, ''])


def _row(cells):
    return f'| {" | ".join(cells)} |'


def _paper_cell(paper, column, row):
    return paper['rows'][row][paper['columns'].index(column)]


# --- The command -----------------------------------------------------------------------------------


def selected_columns(table: Table, genres) -> list[str]:
    """The columns of a table that the genres leave."""
    return [
        column for column, change in table.columns.items() if change.get('dataset.genre', genres[0]) in genres
    ]


def make(names, genres, root: pathlib.Path, only_show: bool) -> str:
    """Runs what is missing for some tables; -> all of them as Markdown.

    Raises:
      UserError: an unknown table or genre, or what a run raises.
    """
    for name in names:
        config_lib.check_choice('--tables', name, TABLES)
    for genre in genres:
        config_lib.check_choice('--genres', genre, GENRES)

    def find(config):
        return stored_cell(root, config) if only_show else run_cell(root, config)

    texts = []
    for name in names:
        table = TABLES[name]
        if isinstance(table, Table):
            texts.append(render(name, table, results_of(table, selected_columns(table, genres), find)))
            continue
        source = TABLES[table.source]
        columns = selected_columns(source, genres)
        results = results_of(source, columns, find)
        scratch = TABLES[table.baseline_table]
        baselines = {column: find(cell_config(scratch, column, scratch.baseline)) for column in columns}
        texts.append(render_derived(name, table, results, baselines))
    return '\n'.join(texts)


def main():
    tables = flags.DEFINE_list('tables', None, f'Tables to make: {", ".join(TABLES)}.')
    genres = flags.DEFINE_list('genres', ','.join(GENRES), 'MovieLens: only these genres.')
    folder = flags.DEFINE_string('workdir', None, 'Folder of all runs; called again, it goes on.')
    only_show = flags.DEFINE_bool('only_show', False, 'Run nothing; mark what is missing.')

    def command():
        root = workdir.resolve(folder.value)
        text = make(tables.value, genres.value, root, only_show.value)
        if not only_show.value:
            workdir.write(root / f'tables_{"_".join(tables.value)}.md', text)
        print(text)

    command_line.run(command, required=('tables', 'genres', 'workdir'))


if __name__ == '__main__':
    main()
