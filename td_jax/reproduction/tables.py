"""The paper's tables as data: the config changes of each column and row, and the comparisons.

A table's cells are runs (Table), or means over the cells of other tables (Derived). The paper's own numbers
are in paper_tables.json.
"""

import json
import pathlib
import types
from collections.abc import Mapping
from typing import NamedTuple

from td_jax import config as config_lib
from td_jax.configs import searches
from td_jax.errors import UserError

GENRES, LABELLED = searches.GENRES, searches.LABELLED
PAPER = pathlib.Path(__file__).parent / 'paper_tables.json'
# {former name of a row or a column: current name}; files of errors may have the former names.
RENAMED = json.loads((pathlib.Path(__file__).parent / 'renamed.json').read_text())
# Rows without runs, whose scores those of other rows report: the teacher's own, and that of the probe on it.
TEACHER, PROBE = 'teacher', 'probe'

_NONE = types.MappingProxyType({})


class ChosenBy(NamedTuple):
    """Identifies a search of hyperparameters by td_jax.tune."""

    columns: tuple[str, ...] = ()  # whose mean is the score; empty for the usual ones
    sampler_seed: int = 0


USUAL = ChosenBy()


class Table(NamedTuple):
    """A table whose cells are runs."""

    title: str
    config: str | dict[str, str]  # a module of configs/, or one for each column
    columns: dict[str, dict]  # the paper's column -> what it changes
    rows: dict[str, dict | str]  # the paper's row -> what it changes, or TEACHER or PROBE
    baseline: str  # the row that the others are compared with
    # Students of a cell, and the number of teachers that they share: one, or as many as students, so that
    # student i has teacher i and all students are independent. 0 students: as in the config.
    students: int = 0
    teachers: int = 1
    # Row -> a name of VARIANTS, under which it is tuned.
    variants: Mapping[str, str] = _NONE
    # Row -> {key: another key of the same cell, whose value it gets}.
    copied: Mapping[str, dict[str, str]] = _NONE
    # Row -> another row; trained for as many operations as that one.
    compute_matched_to: Mapping[str, str] = _NONE
    # Row -> another row, whose tuned hyperparameters it uses. Options that its method does not read, such as
    # another method's weights, do not change its run.
    hyperparameters_of: Mapping[str, str] = _NONE
    # Row -> the search that chose its hyperparameters, in place of the usual one.
    chosen_by: Mapping[str, ChosenBy] = _NONE
    # Row -> the row to compare it with, in place of `baseline`.
    baselines: Mapping[str, str] = _NONE
    # Row -> the same row with the choices of repeated searches, to show their spread.
    repeated: Mapping[str, tuple[str, ...]] = _NONE
    # A short name of the data: the title of a panel of a forest plot.
    setting: str = ''
    # The config key on the horizontal axis of the figure; there is a line for each value of the others.
    swept: str = ''

    def is_run(self, row: str) -> bool:
        """Whether a row has runs of its own."""
        return self.rows[row] not in (TEACHER, PROBE)

    def baseline_of(self, row: str) -> str:
        """The row that another one is compared with."""
        return self.baselines.get(row, self.baseline)


class Derived(NamedTuple):
    """A table of relative improvements over a baseline, averaged over columns of another table."""

    title: str
    groups: dict[str, 'Group']  # by column
    rows: dict[str, dict[str, str]]  # row -> {table: its row there}
    # More columns: a group's improvement less another's.
    contrasts: Mapping[str, tuple[str, str]] = _NONE


class Group(NamedTuple):
    """The source of a column of relative improvements."""

    source: str  # a table
    columns: tuple[str, ...]  # of that table, to be averaged
    baseline: tuple[str, str]  # (table, row) in the same columns
    sign: int  # 1 if more is better, -1 if less is


_GENRE_COLUMNS = {f'Genre {i + 1}': {'dataset.genre': genre} for i, genre in enumerate(GENRES)}
_SPARSE = ('Genre 5', 'Genre 6', 'Genre 7', 'Genre 8')
# The columns of the image tables -> their modules of configs/.
IMAGES = {'CIFAR10': 'vit_cifar10', 'CIFAR100': 'vit_cifar100', 'ImageNet': 'vit_imagenet'}
_IMAGE_COLUMNS = {column: {} for column in IMAGES}
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
_IMAGE_METHODS = {'No distillation': {'method': 'supervised'}, **_DISTILLED}
_TD = {'method': 'td'}

# Variants that are tuned in addition to the methods -> the values that the search starts from.
VARIANTS = {
    'td_ld': {'method': 'td', 'td.weights.logits': 1.0},
}
_WITH_LD = 'TD + LD'
_RECENT = {_WITH_LD: _TD, **{method.upper(): {'method': method} for method in ('rkd', 'crd', 'srd')}}
_CLASSIFICATION = {method.upper(): {'method': method} for method in ('dkd', 'dist')}
# The rows that are distillation methods; the others are baselines, teachers and controls.
METHODS = (*_DISTILLED, *_RECENT, *_CLASSIFICATION)
# TD's gain over these is due to a teacher that knows more.
_SMALL_TEACHER = 'TD, teacher of equal size'
_AS_LONG = 'Train from scratch, compute-matched to TD'
# A gain over these does not come from the learning rate, dropout, weight decay or number of steps.
_WITH_HYPERPARAMETERS_OF = {
    f"Train from scratch, {row}'s hyperparameters": row for row in ('LD', 'TD', _WITH_LD)
}
_WITH_LD_CONTROLS = {
    f'{_WITH_LD}, no interactions': {'td.rounds': 0},
    f'{_WITH_LD}, shuffled states': {'teacher.control': 'shuffled_states'},
}
_CONTROLS = {
    'TD, untrained teacher': {**_TD, 'teacher.control': 'untrained'},
    'TD, shuffled teacher': {**_TD, 'teacher.control': 'shuffled'},
    # An untrained teacher predicts nothing like a rating; a shuffled one predicts ratings of other examples.
    'LD, shuffled teacher': {'method': 'ld', 'teacher.control': 'shuffled'},
    # With a student's seed, the teacher would start as that student.
    _SMALL_TEACHER: {**_TD, 'teacher.seed': 100},
    _AS_LONG: {'method': 'supervised'},
    **{row: {'method': 'supervised'} for row in _WITH_HYPERPARAMETERS_OF},
    # Controls for the interaction in TD + LD: no rounds, and states of other examples.
    **{row: _TD | change for row, change in _WITH_LD_CONTROLS.items()},
}

# Of images; no untrained teacher, because the students start from the teacher's blocks.
_IMAGE_HYPERPARAMETERS_OF = {"No distillation, TD's hyperparameters": 'TD'}
_IMAGE_CONTROLS = {
    'TD, shuffled teacher': _CONTROLS['TD, shuffled teacher'],
    **{row: {'method': 'supervised'} for row in _IMAGE_HYPERPARAMETERS_OF},
}

# Of images with a public teacher.
_COMPUTE_MATCHED = 'No distillation, compute-matched to TD'
_BY_COUNT_OF_ROUNDS = {
    f'TD, {rounds} round{"s" * (rounds != 1)}': {**_TD, 'td.rounds': rounds} for rounds in (0, 1, 2)
}
# What the question whether talking gains over telling needs; other methods are rows of a table of their own,
# because each has a search of its own and every row takes hours.
_PUBLIC_ROWS = {
    'No distillation': {'method': 'supervised'},
    'Probe on the teacher': PROBE,
    **{row: _DISTILLED[row] for row in ('LD', 'FitNet', 'TD')},
    **_BY_COUNT_OF_ROUNDS,
    _WITH_LD: _TD,
    **_IMAGE_CONTROLS,
    'LD, shuffled teacher': _CONTROLS['LD, shuffled teacher'],
    _COMPUTE_MATCHED: {'method': 'supervised'},
}
_PUBLIC_RECENT = {**_PUBLIC_ROWS, **_DISTILLED, **_RECENT, **_CLASSIFICATION}
_FIXED_VIEWS = 'No distillation, fixed views'
# Of a student that is no part of its teacher, with the config's teacher.views.
_PUBLIC_CNN_CONTROLS = {
    'TD, untrained teacher': {**_CONTROLS['TD, untrained teacher'], 'teacher.pretrained': ''},
    # A method whose only weight is 0: the views of a student with a teacher, and the loss of one without. No
    # distillation itself has a new view of an image in each step.
    _FIXED_VIEWS: {'method': 'ld', 'ld.weights.logits': 0.0},
}

_DENSE_OR_SPARSE = {'ML(Sparse) minus ML(Dense)': ('ML(Sparse)', 'ML(Dense)')}


def _groups_of_ratings(name, of_scratch):
    """The columns of Tables 1 and 2 that come from a table of ratings and from Table 3 of the same split."""
    baseline = of_scratch, 'Train from scratch'
    return {
        'ML(Dense)': Group(name, ('Genre 1',), baseline, -1),
        'ML(Sparse)': Group(name, _SPARSE, baseline, -1),
    }


def _groups_of_images(name):
    """The columns of Tables 1 and 2 that come from a table of images."""
    return {column: Group(name, (column,), ('4', 'No distillation'), 1) for column in IMAGES}


def variant(name: str) -> dict:
    """The config changes of a method or of one of VARIANTS."""
    return VARIANTS.get(name, {'method': name})


def _split_by_user(table):
    """A table of ratings with the per-user split."""
    columns = {name: {**change, 'dataset.split_by': 'user'} for name, change in table.columns.items()}
    title, setting = (
        f'{table.title}, per-user split',
        table.setting.replace('temporal', 'per-user'),
    )
    return table._replace(title=title, setting=setting, columns=columns)


def _at_reduced_scale(table):
    """A table of images on CIFAR-10 with two numbers of labelled images per class, taught by small ViTs."""
    columns = {f'{count} images per class': {'dataset.examples_per_class': count} for count in LABELLED}
    title = f'{table.title}, CIFAR-10 at reduced scale'
    setting = 'CIFAR-10 (reduced scale)'
    return table._replace(title=title, setting=setting, config='vit_tiny_cifar10', columns=columns, **_FIVE)


def _with_public_teacher(title, config, rows, unlabelled):
    """A table of CIFAR-10 with three numbers of labels per class and a public teacher."""
    others = 'the other images without labels' if unlabelled else 'the other images left out'
    return Table(
        f'{title}, {others}',
        config,
        {
            f'{count} label{"s" * (count > 1)} per class': {
                **searches.SPACES[config]['columns'][str(count)],
                'dataset.unlabelled': unlabelled,
            }
            for count in searches.FEW_LABELS
        },
        rows,
        'No distillation',
        variants={_WITH_LD: 'td_ld'},
        compute_matched_to={_COMPUTE_MATCHED: 'TD'},
        hyperparameters_of=_IMAGE_HYPERPARAMETERS_OF
        | ({_FIXED_VIEWS: 'No distillation'} if _FIXED_VIEWS in rows else {}),
        setting=f'CIFAR-10, {config.split("_")[1].upper()}, {others}',
        students=5,
    )


def _scaled_td(weight):
    """TD with scaled distances, all of one weight."""
    weights = {f'td.weights.{term}': weight for term in ('interact', 'message', 'state')}
    return {**_TD, 'td.scale': 'variance', **weights}


# Hyperparameters chosen on one genre, to see what a common choice for all genres costs.
_WAR_ROWS = {**_SCRATCH, **_DISTILLED, _WITH_LD: _TD}
_CHOSEN_ON_WAR = {row: f'{row}, chosen on War' for row in _WAR_ROWS}

# The main rows with the choices of searches with other sampler seeds; each is compared with no distillation
# of the same search.
_SAMPLER_SEEDS = (1, 2)
_REPETITIONS = {
    row: tuple(f'{row} (sampler seed {seed})' for seed in _SAMPLER_SEEDS)
    for row in ('Train from scratch', 'LD', 'TD', _WITH_LD)
}
_SEARCH_ROWS = {row: {**_SCRATCH, **_DISTILLED, _WITH_LD: _TD}[row] for row in _REPETITIONS}

# The effect of rounds: every weight of their term, all else as chosen for TD.
_SWEEP = {
    f'{rounds} round{"s" * (rounds > 1)}, interact {weight:g}': {
        **_TD,
        'td.rounds': rounds,
        'td.weights.interact': weight,
    }
    for rounds in (1, 2, 3)
    for weight in (0.1, 1.0, 10.0, 100.0, 1000.0)
}

# Rows of Table 2 -> those of Tables 5 and 6.
_BY_ROUNDS = {
    'No interaction': ('No interactions', 'No interactions'),
    '1 iteration': ('1 iteration', '1 iteration'),
    '>1 iterations': ('2 to 3 iterations', '2 iterations'),
}
# Students and teachers of a cell if training is short.
_TEN = {'students': 10, 'teachers': 10}
_OF_RATINGS = {**_TEN, 'setting': 'MovieLens100k, temporal split'}
_FIVE = {'students': 5, 'teachers': 5}

TABLES = {
    'digits': Table(
        'Handwritten digits 5 to 9 from ten examples per class, with a teacher of 0 to 4',
        'digits',
        {'5 to 9': {}},
        {**_SCRATCH, **_DISTILLED},
        'Train from scratch',
        setting='Digits, ten examples per class',
        students=10,
    ),
    'digits_x': Table(
        'Handwritten digits 5 to 9 from ten examples per class, with recent methods',
        'digits',
        {'5 to 9': {}},
        {**_SCRATCH, **_DISTILLED, **_RECENT, **_CLASSIFICATION},
        'Train from scratch',
        setting='Digits, ten examples per class',
        variants={_WITH_LD: 'td_ld'},
        **_TEN,
    ),
    '1': Derived(
        'Relative improvement over no distillation',
        _groups_of_ratings('3', '3') | _groups_of_images('4'),
        {row: {'3': row, '4': row} for row in _DISTILLED},
        _DENSE_OR_SPARSE,
    ),
    '2': Derived(
        'Relative improvement by number of rounds',
        _groups_of_ratings('5', '3') | _groups_of_images('6'),
        {row: {'5': of_ratings, '6': of_images} for row, (of_ratings, of_images) in _BY_ROUNDS.items()},
        _DENSE_OR_SPARSE,
    ),
    '1_user': Derived(
        'Relative improvement over no distillation, per-user split',
        _groups_of_ratings('3_user', '3_user'),
        {row: {'3_user': row} for row in _DISTILLED},
        _DENSE_OR_SPARSE,
    ),
    '2_user': Derived(
        'Relative improvement by number of rounds, per-user split',
        _groups_of_ratings('5_user', '3_user'),
        {row: {'5_user': of_ratings} for row, (of_ratings, _) in _BY_ROUNDS.items()},
        _DENSE_OR_SPARSE,
    ),
    '3': Table(
        'MovieLens100k rating prediction by genre',
        'movielens',
        _GENRE_COLUMNS,
        _METHODS,
        'Train from scratch',
        **_OF_RATINGS,
    ),
    '3x': Table(
        'MovieLens100k rating prediction by genre, with recent methods and controls',
        'movielens',
        _GENRE_COLUMNS,
        {**_METHODS, **_RECENT, **_CONTROLS},
        'Train from scratch',
        variants=dict.fromkeys((_WITH_LD, *_WITH_LD_CONTROLS), 'td_ld'),
        copied={
            _SMALL_TEACHER: {'teacher.model.hidden': 'model.hidden', 'teacher.dataset.genre': 'dataset.genre'}
        },
        compute_matched_to={_AS_LONG: 'TD'},
        hyperparameters_of=_WITH_HYPERPARAMETERS_OF,
        **_OF_RATINGS,
    ),
    '4': Table(
        'Image classification accuracy',
        IMAGES,
        _IMAGE_COLUMNS,
        _IMAGE_METHODS,
        'No distillation',
    ),
    '4x': Table(
        'Image classification accuracy, with recent methods and controls',
        IMAGES,
        _IMAGE_COLUMNS,
        {**_IMAGE_METHODS, **_RECENT, **_CLASSIFICATION, **_IMAGE_CONTROLS},
        'No distillation',
        variants={_WITH_LD: 'td_ld'},
        hyperparameters_of=_IMAGE_HYPERPARAMETERS_OF,
    ),
    '6': Table(
        'Image classification by number of rounds',
        IMAGES,
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
        IMAGES,
        _IMAGE_COLUMNS,
        {
            'No L_SC': {**_TD, 'td.rounds': 2, 'td.weights.state': 0.0},
            'Add noise': {**_TD, 'td.rounds': 2, 'td.noise_std': 0.1},
            'No noise': {**_TD, 'td.rounds': 2},
            'TD': {**_TD, 'td.rounds': 2},
        },
        'TD',
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
        **_OF_RATINGS,
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
        **_OF_RATINGS,
    ),
    '8': Table(
        'MovieLens100k with noise before interpreting, and with staged training',
        'movielens',
        _GENRE_COLUMNS,
        {
            'Add noise': {**_TD, 'td.noise_std': 0.1},
            'No noise': _TD,
            'Train E, D separately': {**_TD, 'td.ramp_up': (1000, 500)},
            'Train together': _TD,
        },
        'Train together',
        **_OF_RATINGS,
    ),
    'needs': Table(
        'What TD needs: MovieLens100k on validation data, TD with one thing changed',
        'movielens',
        {
            name: {**change, 'dataset.split': 'validation'}
            for name, change in _GENRE_COLUMNS.items()
            if change['dataset.genre'] in ('Drama', 'Adventure', 'War')
        },
        {
            **_SCRATCH,
            'TD': _TD,
            'No interactions': {**_TD, 'td.rounds': 0},
            '3 rounds': {**_TD, 'td.rounds': 3},
            'Scaled distances, weights 0.1': _scaled_td(0.1),
            'Scaled distances, weights 1': _scaled_td(1.0),
            'Stopped targets': {**_TD, 'td.stop_target': True},
            'Stopped targets, scaled distances, weights 1': {**_scaled_td(1.0), 'td.stop_target': True},
            'Split at the embeddings': {**_TD, 'model.split': 0, 'teacher.model.split': 0},
            'Messages of 32': {**_TD, 'communication.message': 32},
            'Messages of 512': {**_TD, 'communication.message': 512},
            'Warm-up of 300 steps': {**_TD, 'td.warmup_steps': 300},
        },
        'TD',
        setting='MovieLens100k, temporal split, validation data',
        **_TEN,
    ),
}
# Tables that the paper does not have: ratings with the per-user split, and images at a reduced scale that two
# cores can train.
TABLES['3_searches'] = Table(
    'MovieLens100k rating prediction by genre, hyperparameters chosen by three searches with different '
    'draws, each compared with no distillation of the same search',
    'movielens',
    _GENRE_COLUMNS,
    _SEARCH_ROWS | {other: _SEARCH_ROWS[row] for row, others in _REPETITIONS.items() for other in others},
    'Train from scratch',
    variants=dict.fromkeys((_WITH_LD, *_REPETITIONS[_WITH_LD]), 'td_ld'),
    chosen_by={
        other: ChosenBy(sampler_seed=seed)
        for others in _REPETITIONS.values()
        for other, seed in zip(others, _SAMPLER_SEEDS, strict=True)
    },
    baselines={
        other: baseline
        for row, others in _REPETITIONS.items()
        if row != 'Train from scratch'
        for other, baseline in zip(others, _REPETITIONS['Train from scratch'], strict=True)
    },
    repeated=_REPETITIONS,
    **_OF_RATINGS,
)
TABLES['interact'] = TABLES['needs']._replace(
    title='What rounds can do: MovieLens100k on validation data, TD with every weight of interactions',
    rows={'No interactions': {**_TD, 'td.rounds': 0}, **_SWEEP},
    baseline='No interactions',
    swept='td.weights.interact',
)
TABLES |= {
    f'{name}_user': _split_by_user(TABLES[name])
    for name in ('3', '3x', '3_searches', '5', '7', '8', 'needs', 'interact')
}
TABLES['war_user'] = _split_by_user(
    Table(
        'MovieLens100k, War: hyperparameters chosen on War alone, or on the mean of three genres',
        'movielens',
        {column: change for column, change in _GENRE_COLUMNS.items() if change['dataset.genre'] == 'War'},
        {**_WAR_ROWS, **{_CHOSEN_ON_WAR[row]: change for row, change in _WAR_ROWS.items()}},
        'Train from scratch',
        variants=dict.fromkeys((_WITH_LD, _CHOSEN_ON_WAR[_WITH_LD]), 'td_ld'),
        chosen_by=dict.fromkeys(_CHOSEN_ON_WAR.values(), ChosenBy(('War',))),
        **_OF_RATINGS,
    )
)
TABLES |= {f'{name}_small': _at_reduced_scale(TABLES[name]) for name in ('4', '4x', '6', '9')}
TABLES |= {
    f'{name}{kind}{suffix}': _with_public_teacher(f'{title}{more}', config, rows | controls, unlabelled)
    for name, title, config, controls in (
        (
            'public_vit',
            'CIFAR-10: a public ViT-S/14 teaches its own first four blocks',
            'public_vit_cifar10',
            {},
        ),
        (
            'public_cnn',
            'CIFAR-10: a public EfficientNet-lite0 teaches a small ViT',
            'public_cnn_cifar10',
            _PUBLIC_CNN_CONTROLS,
        ),
    )
    for kind, more, rows in (('', '', _PUBLIC_ROWS), ('_x', ', with recent methods', _PUBLIC_RECENT))
    for suffix, unlabelled in (('', 'rest'), ('_labelled', ''))
}


def paper(name: str) -> dict | None:
    """The paper's table, {'columns': names, 'rows': {row: [[value, its ± or None] for each column]}}.

    None if the paper has no such table.
    """
    return json.loads(PAPER.read_text())['tables'].get(name)


def check_names(names, genres, datasets):
    """Refuses unknown tables, genres and data sets, and a table without a column of these.

    Raises:
      UserError: names it.
    """
    for flag, values, known in (
        ('--tables', names, TABLES),
        ('--genres', genres, GENRES),
        ('--datasets', datasets, IMAGES),
    ):
        for value in values:
            config_lib.check_choice(flag, value, known)
    for name in names:
        if not wanted_cells([name], genres, datasets):
            raise UserError(
                f'table {name} has no column of --genres={",".join(genres)} and '
                f'--datasets={",".join(datasets)}; leave it out, or name more.'
            )


def with_baseline(name: str, baseline: str | None) -> Table | Derived:
    """Replaces the baseline of a table, unless `baseline` is None or the table is derived.

    Raises:
      UserError: the table has no such row.
    """
    table = TABLES[name]
    if baseline is None or isinstance(table, Derived):
        return table
    config_lib.check_choice('--baseline', baseline, list(filter(table.is_run, table.rows)))
    return table._replace(baseline=baseline, baselines=_NONE, repeated=_NONE)


def selected_columns(table: Table, genres, datasets=tuple(IMAGES)) -> list[str]:
    """The columns of a table that belong to some genres and image data sets."""
    return [
        column
        for column, change in table.columns.items()
        if change.get('dataset.genre', genres[0]) in genres and (column in datasets or column not in IMAGES)
    ]


def flags_without_columns(names) -> list[str]:
    """Lists which of the flags `genres` and `datasets` select no column of any of some tables."""
    columns = {(name, column) for name, column, _ in wanted_cells(names, GENRES, tuple(IMAGES))}
    has_columns = {
        'genres': any('dataset.genre' in TABLES[name].columns[column] for name, column in columns),
        'datasets': any(column in IMAGES for _, column in columns),
    }
    return [flag for flag, is_used in has_columns.items() if not is_used]


def wanted_cells(names, genres, datasets):
    """Lists each cell that some tables need once, as (table, column, row), in order."""
    cells = {}
    for name in names:
        table = TABLES[name]
        if isinstance(table, Table):
            for column in selected_columns(table, genres, datasets):
                cells |= {(name, column, row): None for row in table.rows if table.is_run(row)}
            continue
        for group in table.groups.values():
            baseline_table, baseline_row = group.baseline
            for source, rows in (
                (group.source, [rows[group.source] for rows in table.rows.values()]),
                (baseline_table, [baseline_row]),
            ):
                columns = selected_columns(TABLES[source], genres, datasets)
                columns_of_group = [column for column in group.columns if column in columns]
                cells |= {(source, column, row): None for column in columns_of_group for row in rows}
    return list(cells)
