"""The paper's tables: what to run, what is missing, the paper's numbers beside ours.

    python -m td_jax.reproduce --tables=3 --genres=Drama,War --workdir=runs/tables

Every cell is a run of td_jax.training.run in a folder of its own, so this may be interrupted and called
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

from configs import common
from td_jax import command_line
from td_jax import config as config_lib
from td_jax.devices import flops, sharding
from td_jax.files import workdir
from td_jax.training import assembly, evaluation
from td_jax.training.run import train

GENRES = ('Drama', 'Comedy', 'Action', 'Thriller', 'Romance', 'Adventure', 'Sci-Fi', 'War')
PAPER = pathlib.Path(__file__).parent / 'paper_tables.json'
TUNED = pathlib.Path(__file__).parents[1] / 'configs' / 'tuned'
# The parts of a config that do not make its teacher.
OF_STUDENTS = ('method', 'ld', 'fd', 'fitnet', 'hybrid', 'td', 'logits', 'communication')
# The row whose number is the teacher's own score, which every distilled run reports.
TEACHER = 'teacher'


class Table(NamedTuple):
    """A table whose cells are runs."""

    title: str
    config: str | dict[str, str]  # a module of configs/, or one for each column
    columns: dict[str, dict]  # the paper's column -> what it changes
    rows: dict[str, dict | str]  # the paper's row -> what it changes, or TEACHER
    baseline: str  # the row that the others are compared with


class Derived(NamedTuple):
    """A table of relative improvements over a baseline, means over some columns of another table."""

    title: str
    groups: dict[str, 'Group']  # by column
    rows: dict[str, dict[str, str]]  # row -> {table: its row there}


class Group(NamedTuple):
    """Where a column of relative improvements comes from."""

    source: str  # a table
    columns: tuple[str, ...]  # of that table; their mean is taken
    baseline: tuple[str, str]  # (table, row) of what is improved upon, in the same columns
    sign: int  # 1 where more is better, -1 where less is


_GENRE_COLUMNS = {f'Genre {i + 1}': {'dataset.genre': genre} for i, genre in enumerate(GENRES)}
_SPARSE = ('Genre 5', 'Genre 6', 'Genre 7', 'Genre 8')
_IMAGES = {'CIFAR10': 'vit_cifar10', 'CIFAR100': 'vit_cifar100', 'ImageNet': 'vit_imagenet'}
_IMAGE_COLUMNS = {column: {} for column in _IMAGES}
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
_DISTILLED = {row: change for row, change in _METHODS.items() if row not in ('Train from scratch', 'Teacher')}
_TD = {'method': 'td'}


def _groups(ratings, images):
    """The columns of Tables 1 and 2, from a table of ratings and one of images."""
    ratings_baseline, images_baseline = ('3', 'Train from scratch'), ('4', 'No distillation')
    return {
        'ML(Dense)': Group(ratings, ('Genre 1',), ratings_baseline, -1),
        'ML(Sparse)': Group(ratings, _SPARSE, ratings_baseline, -1),
        **{column: Group(images, (column,), images_baseline, 1) for column in _IMAGES},
    }


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
        _groups('3', '4'),
        {row: {'3': row, '4': row} for row in _DISTILLED},
    ),
    '2': Derived(
        'Relative improvement by number of rounds',
        _groups('5', '6'),
        {
            'No interaction': {'5': 'No interactions', '6': 'No interactions'},
            '1 iteration': {'5': '1 iteration', '6': '1 iteration'},
            '>1 iterations': {'5': '2 to 3 iterations', '6': '2 iterations'},
        },
    ),
    '3': Table(
        'MovieLens100k rating prediction by genre',
        'movielens',
        _GENRE_COLUMNS,
        _METHODS,
        'Train from scratch',
    ),
    '4': Table(
        'Image classification accuracy',
        _IMAGES,
        _IMAGE_COLUMNS,
        {'No distillation': {'method': 'supervised'}, **_DISTILLED},
        'No distillation',
    ),
    '6': Table(
        'Image classification by number of rounds',
        _IMAGES,
        _IMAGE_COLUMNS,
        {
            'No interactions': {**_TD, 'td.rounds': 0},
            '1 iteration': {**_TD, 'td.rounds': 1},
            '2 iterations': {**_TD, 'td.rounds': 2},
        },
        'No interactions',
    ),
    '9': Table(
        'Image classification without L_SC, and with noise before interpreting',
        _IMAGES,
        _IMAGE_COLUMNS,
        {
            'No L_SC': {**_TD, 'td.rounds': 2, 'td.weights.state': 0.0},
            'Add noise': {**_TD, 'td.rounds': 2, 'td.noise_std': 0.1},
            'No noise': {**_TD, 'td.rounds': 2},
            'TD': {**_TD, 'td.rounds': 2},
        },
        'TD',
    ),
    'vit_tiny': Table(
        'CIFAR-10 in small: five classes from few images, taught by a small ViT of the other five',
        'vit_tiny_cifar10',
        {'bird, cat, deer, dog, frog': {}},
        {row: change for row, change in _METHODS.items() if change != TEACHER},
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
    module = table.config if isinstance(table.config, str) else table.config[column]
    config = base_config(module)
    config.update_from_flattened_dict(table.columns[column])
    method = table.rows[row]['method']
    apply_tuned(config, tuned(module), method)
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
    train(config_lib.teacher_run(teacher), folder)
    return folder


def shared_teacher_config(config):
    """`config` with everything that does not make its teacher at the default."""
    shared, defaults = config.copy_and_resolve_references(), common.get_config()
    with shared.unlocked():
        for key in OF_STUDENTS:
            shared[key] = defaults[key]
    return shared


def run_cell(root: pathlib.Path, config) -> dict:
    """The result of a cell, run now if it is missing."""
    folder = run_folder(root, config)
    config = config.copy_and_resolve_references()
    if assembly.has_teacher(config) and not config.teacher.pretrained:
        config.teacher.checkpoint = str(share_teacher(root, config))
    result = train(config, folder)
    # Hundreds of compiled programs in one process would fill the memory.
    jax.clear_caches()
    return result


def stored_cell(root: pathlib.Path, config) -> dict | None:
    """The result of a cell, or None where it is missing."""
    return workdir.read_json(run_folder(root, config) / workdir.RESULT)


# --- What came of it -------------------------------------------------------------------------------


def with_teacher(table: Table, results: dict) -> dict:
    """{column: {row: result or None}}, the teacher's row filled with what another row says of it."""
    filled = {}
    for column, rows in results.items():
        scores = [result['teacher'] for result in rows.values() if result and result['teacher'] is not None]
        said = {'mean': scores[0], 'stderr': None} if scores else None
        filled[column] = {row: said if table.rows[row] == TEACHER else rows[row] for row in table.rows}
    return filled


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


def render_derived(name: str, table: Derived, results: dict) -> str:
    """A table of relative improvements as Markdown, computed from our own cells.

    Args:
      name: of the table.
      table: what it is made of.
      results: {table: {column: {row: result or None}}} of the tables it comes from.
    """
    paper = json.loads(PAPER.read_text())['tables'][name]
    lines = [
        f'## Table {name}: {table.title}, percent',
        '',
        'Ours is computed from our own cells: the mean over the columns of the relative improvement, of an '
        'RMSE its reduction.',
        '',
        _row(['method', *(f'{group}, {who}' for group in paper['columns'] for who in ('ours', 'paper'))]),
        _row(['---'] * (1 + 2 * len(paper['columns']))),
    ]
    for row in table.rows:
        gains = {name: improvement(group, table.rows[row], results) for name, group in table.groups.items()}
        known = [gain for gain in gains.values() if gain is not None]
        # What the paper averages over is all of its columns.
        gains['Avg.'] = np.mean(known) if len(known) == len(table.groups) else None
        cells = [row]
        for column, (value, _) in zip(paper['columns'], paper['rows'][row], strict=True):
            cells += ['missing' if gains[column] is None else f'{gains[column]:+.2f}', f'{value:+.2f}']
        lines.append(_row(cells))
    return '\n'.join([*lines, ''])


def improvement(group: Group, rows: dict, results: dict):
    """Mean relative improvement of a row over a baseline in percent, or None where a cell is missing.

    Args:
      group: the columns.
      rows: {table: the row there}.
      results: {table: {column: {row: result or None}}}.
    """
    baseline_table, baseline_row = group.baseline
    gains = []
    for column in group.columns:
        result = results.get(group.source, {}).get(column, {}).get(rows[group.source])
        baseline = results.get(baseline_table, {}).get(column, {}).get(baseline_row)
        if not result or not baseline:
            return None
        gains.append(100 * group.sign * (result['mean'] / baseline['mean'] - 1))
    return float(np.mean(gains))


def _row(cells):
    return f'| {" | ".join(cells)} |'


def _paper_cell(paper, column, row):
    return paper['rows'][row][paper['columns'].index(column)]


# --- The command -----------------------------------------------------------------------------------


def selected_columns(table: Table, genres, datasets=tuple(_IMAGES)) -> list[str]:
    """The columns of a table that the genres and the image data sets leave."""
    return [
        column
        for column, change in table.columns.items()
        if change.get('dataset.genre', genres[0]) in genres and (column in datasets or column not in _IMAGES)
    ]


def tables_behind(table: Derived) -> list[str]:
    """The tables whose cells a table of improvements is made of."""
    names = [name for group in table.groups.values() for name in (group.source, group.baseline[0])]
    return sorted(set(names))


def wanted_cells(names, genres, datasets):
    """Every cell that some tables need, once each: {(table, column, row)} in order."""
    cells = {}
    for name in names:
        table = TABLES[name]
        if isinstance(table, Table):
            for column in selected_columns(table, genres, datasets):
                cells |= {
                    (name, column, row): None for row, change in table.rows.items() if change != TEACHER
                }
            continue
        for group in table.groups.values():
            baseline_table, baseline_row = group.baseline
            for source, rows in (
                (group.source, [rows[group.source] for rows in table.rows.values()]),
                (baseline_table, [baseline_row]),
            ):
                columns = selected_columns(TABLES[source], genres, datasets)
                kept = [column for column in group.columns if column in columns]
                cells |= {(source, column, row): None for column in kept for row in rows}
    return list(cells)


def make(names, genres, root: pathlib.Path, only_show: bool, datasets=tuple(_IMAGES)) -> str:
    """Runs what is missing for some tables; -> all of them as Markdown.

    Raises:
      UserError: an unknown table, genre or data set, or what a run raises.
    """
    check_names(names, genres, datasets)
    results = {}
    for name, column, row in wanted_cells(names, genres, datasets):
        config = cell_config(TABLES[name], column, row)
        found = stored_cell(root, config) if only_show else run_cell(root, config)
        results.setdefault(name, {}).setdefault(column, {})[row] = found
    texts = []
    for name in names:
        table = TABLES[name]
        if isinstance(table, Table):
            columns = selected_columns(table, genres, datasets)
            texts.append(render(name, table, with_teacher(table, {c: results[name][c] for c in columns})))
        else:
            texts.append(render_derived(name, table, results))
    return '\n'.join(texts)


def check_names(names, genres, datasets):
    """Raises a UserError for an unknown table, genre or data set."""
    for flag, values, known in (
        ('--tables', names, TABLES),
        ('--genres', genres, GENRES),
        ('--datasets', datasets, _IMAGES),
    ):
        for value in values:
            config_lib.check_choice(flag, value, known)


def plan(names, genres, datasets, root: pathlib.Path, device_tflops: float) -> str:
    """What `make` would run, as Markdown: operations and time of each run on a device of a given speed.

    Raises:
      UserError: an unknown name, or a table whose runs cannot be counted without their data.
    """
    check_names(names, genres, datasets)
    lines = [
        _row(['run', 'state', 'operations a step', 'steps', 'seeds', 'operations', 'hours']),
        _row(['---'] * 7),
    ]
    seen, total = set(), 0
    for name, column, row in wanted_cells(names, genres, datasets):
        config = cell_config(TABLES[name], column, row)
        folder = run_folder(root, config)
        if folder in seen:
            continue
        seen.add(folder)
        abstract = assembly.abstract_images(config, sharding.make_mesh(config))
        of_step = flops.of(abstract.jitted, *abstract.arguments)
        operations = of_step * config.num_steps
        is_there = stored_cell(root, config) is not None
        total += 0 if is_there else operations
        lines.append(
            _row(
                [
                    f'Table {name}, {column}, {row}',
                    'there' if is_there else 'missing',
                    f'{of_step:.3g}',
                    f'{config.num_steps}',
                    f'{config.num_seeds}',
                    f'{operations:.3g}',
                    f'{operations / device_tflops / 1e12 / 3600:.3g}',
                ]
            )
        )
    hours = total / device_tflops / 1e12 / 3600
    lines += ['', f'Missing in all: {total:.3g} operations, {hours:.3g} hours at {device_tflops:g} TFLOP/s.']
    return '\n'.join(lines)


def main():
    tables = flags.DEFINE_list('tables', None, f'Tables to make: {", ".join(TABLES)}.')
    genres = flags.DEFINE_list('genres', ','.join(GENRES), 'MovieLens: only these genres.')
    datasets = flags.DEFINE_list('datasets', ','.join(_IMAGES), 'Images: only these columns.')
    folder = flags.DEFINE_string('workdir', None, 'Folder of all runs; called again, it goes on.')
    only_show = flags.DEFINE_bool('only_show', False, 'Run nothing; mark what is missing.')
    dry_run = flags.DEFINE_bool(
        'dry_run', False, 'Run nothing; print the runs of images, their operations and their time.'
    )
    tflops = flags.DEFINE_float(
        'device_tflops',
        100.0,
        'For --dry_run: 1e12 operations a second that are reached on average.',
        lower_bound=1e-6,
    )

    def command():
        root = workdir.resolve(folder.value)
        if dry_run.value:
            print(plan(tables.value, genres.value, datasets.value, root, tflops.value))
            return
        text = make(tables.value, genres.value, root, only_show.value, datasets.value)
        if not only_show.value:
            workdir.write(root / f'tables_{"_".join(tables.value)}.md', text)
        print(text)

    command_line.run(command, required=('tables', 'genres', 'datasets', 'workdir'))


if __name__ == '__main__':
    main()
