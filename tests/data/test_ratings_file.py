"""Ratings from a CSV or TSV: what is read, by hand, and what is refused."""

import csv
import datetime
import json
import tracemalloc

import jax
import numpy as np
import pytest

from td_jax.configs import ratings as ratings_config
from td_jax.data import base, ratings, ratings_file, table
from td_jax.errors import UserError
from td_jax.training import assembly
from td_jax.training.run import train
from tests import forked

HEADER = 'user,item,rating,timestamp'


def write_file(folder, text, name='own.csv'):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make_config(path, split='test', **changes):
    config = ratings_config.get_config()
    config.dataset.update({'path': str(path), 'split': split, **changes})
    return config


def load(path, **changes):
    config = make_config(path, **changes)
    return ratings_file.load(config.dataset, config.dataset)


def compute_inputs(source, examples, key=None):
    return jax.tree.map(np.asarray, source.inputs(source.tables, examples, key))


def find_raw_ids(source, examples):
    """[(user id, item id, rating)] of examples."""
    names = [source.ids[field].raw[examples[field]].tolist() for field in ('user', 'item')]
    return list(zip(*names, examples['labels'].tolist(), strict=True))


# Ten ratings, the latest first. In order of time: ann and bo in turn, then zoe, who is new.
FILM = {
    'x1': ('"Les enfants, du paradis"', 'Drama|War'),
    '7': ('Les Été', 'Drama'),
    'ü': ('', ''),
}
LINES = [
    ('zoe', '7', '-1e1', 999),
    *(('ann' if i % 2 else 'b o', ['x1', '7', 'ü'][i % 3], f'{i}.5', 100 + i) for i in range(9)),
]


def make_film_table(separator=','):
    rows = [','.join([user, item, rating, str(time), *FILM[item]]) for user, item, rating, time in LINES]
    text = '\n'.join([f'{HEADER},title,kinds', *rows, ''])
    if separator == ',':
        return text
    cells = csv.reader(text.splitlines())
    return '\n'.join('\t'.join(row) for row in cells)


# --- What is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['own.csv', 'own.TSV'])
def test_four_columns_are_enough_and_others_are_reported(tmp_path, name):
    path = write_file(tmp_path, make_film_table(',' if name == 'own.csv' else '\t'), name)
    source = load(path)
    assert (source.name, source.task, source.label_names) == (f'{name} all', 'regression', ('rating',))
    assert source.note == f'{name} has columns that are not read: title, kinds'
    expected = [(user, item, float(rating)) for user, item, rating, _ in LINES[1:]]
    assert find_raw_ids(source, source.train) == expected
    assert find_raw_ids(source, source.evaluation) == [('zoe', '7', -10.0)]
    assert source.ids['user'].raw.tolist() == ['ann', 'b o', 'zoe']
    assert source.ids['item'].raw.tolist() == ['7', 'x1', 'ü']
    assert source.ids['user'].is_known.tolist() == [True, True, False]
    assert [ids.column for ids in source.ids.values()] == ['user', 'item']
    assert source.vocabularies == {'user': 3, 'item': 4}
    # 3 stands for an id that is not in the file.
    inputs = compute_inputs(source, {'user': np.arange(4), 'item': np.arange(4)})
    np.testing.assert_array_equal(inputs['user'], [1, 2, 0, 0])
    np.testing.assert_array_equal(inputs['item'], [1, 2, 3, 0])
    np.testing.assert_array_equal(source.groups['unknown_users'], [True])
    base.check(source)


def test_words_and_categories_by_hand(tmp_path):
    source = load(
        write_file(tmp_path, make_film_table()),
        words=('title',),
        categories=('kinds',),
        min_title_word_count=1,
    )
    assert source.note == ''
    # Column 0 is for values that are not in training; then du enfants les paradis été, and Drama War.
    assert source.vocabularies == {'user': 3, 'item': 4, 'title': 6, 'kinds': 3}
    inputs = compute_inputs(source, {'user': np.zeros(4, int), 'item': np.arange(4)})
    titles = [[0, 0, 0, 1 / 2, 0, 1 / 2], [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(inputs['title'], titles)
    np.testing.assert_allclose(inputs['kinds'], [[0, 1, 0], [0, 1 / 2, 1 / 2], [0, 0, 0], [1, 0, 0]])
    # `les` is the only word in two titles.
    assert load(tmp_path / 'own.csv', words=('title',)).vocabularies['title'] == 2


def test_a_category_without_separator_is_one(tmp_path):
    source = load(write_file(tmp_path, make_film_table()), categories=('kinds',), separator='')
    assert source.vocabularies['kinds'] == 3  # Drama, and Drama|War
    of_drama = {'filter_column': 'kinds', 'filter_value': 'Drama'}
    assert len(load(tmp_path / 'own.csv', separator='', **of_drama).train['labels']) == 3
    assert len(load(tmp_path / 'own.csv', **of_drama).train['labels']) == 6


def test_the_filter_comes_after_the_split_and_is_a_tasks_own(tmp_path):
    text = '\n'.join([f'{HEADER},kind', *(f'u{i % 3},i{i % 4},{i},{i},{"ab"[i % 2]}' for i in range(40)), ''])
    config = make_config(write_file(tmp_path, text))
    config.dataset.update({'filter_column': 'kind', 'filter_value': 'b'})
    student, teacher = (
        ratings_file.load(config.dataset, x) for x in (config.dataset, config.teacher.dataset)
    )
    assert teacher.train['labels'].tolist() == list(range(36))
    assert student.train['labels'].tolist() == list(range(1, 36, 2))
    assert student.evaluation['labels'].tolist() == [37, 39]
    # The teacher maps the ids of the student's examples to rows of its own.
    assert student.vocabularies == {'user': 4, 'item': 3}
    teacher_inputs = compute_inputs(teacher, student.evaluation)
    np.testing.assert_array_equal(teacher_inputs['item'], [2, 4])
    np.testing.assert_array_equal(compute_inputs(student, student.evaluation)['item'], [1, 2])


@pytest.mark.parametrize(
    'times', [['2024-05-31', '2024-06-01T10:00:00+02:00', '2024-06-01T08:30:00'], [3, 5e9, 5e9 + 1]]
)
def test_time_is_a_number_or_a_date(tmp_path, times):
    """Lines in reverse order. The second date is 8:00 UTC; a date without a zone is in UTC."""
    rows = [f'u,i{i},{i},{time}' for i, time in enumerate(times)]
    table = ratings_file._read_file(write_file(tmp_path, '\n'.join([HEADER, *rows[::-1]])), 0, list_columns())
    assert table.labels.tolist() == [0, 1, 2]


def list_columns():
    config = make_config('never').dataset
    return tuple(ratings_file._list_columns(config, config))


def test_equal_times_are_in_order_of_ids_whatever_the_order_of_lines(tmp_path):
    rows = [f'{user},{item},1,5' for user in ('b', 'a', '10', '9') for item in ('y', 'x')]
    orders = []
    for lines in (rows, rows[::-1], sorted(rows)):
        table = ratings_file._read_file(
            write_file(tmp_path, '\n'.join([HEADER, *lines])), len(orders), list_columns()
        )
        orders.append(list(zip(table.user_ids[table.user], table.item_ids[table.item], strict=True)))
    assert orders[0] == [(user, item) for user in ('10', '9', 'a', 'b') for item in ('x', 'y')]
    assert orders[1] == orders[2] == orders[0]


def test_columns_may_have_other_names_and_space_around_them(tmp_path):
    text = '\ufeff"when", stars ,who,what\r\n\r\n' + ''.join(f'{i},{i},  u{i} ,i\r\n' for i in range(10))
    names = {
        'user_column': 'who',
        'item_column': 'what',
        'rating_column': 'stars',
        'timestamp_column': 'when',
    }
    source = load(write_file(tmp_path, text), **names)
    assert find_raw_ids(source, source.evaluation) == [('u9', 'i', 9.0)]
    assert source.ids['user'].column == 'who'


@pytest.mark.parametrize('text', ['4', '+4', '04', '4.', '4.0', '.4e1', '40E-1', ' 4 '])
def test_a_number_is_in_plain_digits(tmp_path, text):
    rows = ''.join(f'u,i,{text},{i}\n' for i in range(10))
    assert set(load(write_file(tmp_path, f'{HEADER}\n{rows}')).train['labels'].tolist()) == {4.0}


@pytest.mark.parametrize('where', ['rating', 'timestamp', 'first timestamp'])
@pytest.mark.parametrize(
    'text',
    # Python's float accepts the first eight.
    ['4_5', '1_700_000_300', '٤', '４', 'inf', '-Infinity', 'nan', '1e400', '0x10', '4,5', '1e', '.', '--4'],
)
def test_what_is_a_number_to_python_alone_is_refused_by_its_line(tmp_path, where, text):
    assert table.parse_number(text) is None
    rating, time = (text, '5') if where == 'rating' else ('3', text)
    rows = '' if where == 'first timestamp' else 'u,i,3,1\nu,j,3,2\n'
    path = write_file(
        tmp_path, f'user\titem\trating\ttimestamp\n{rows}u,i,R,T\n'.replace(',', '\t'), 'own.tsv'
    )
    path.write_text(path.read_text().replace('R', rating).replace('T', time))
    line, name = (2 if where == 'first timestamp' else 4), where.removeprefix('first ')
    assert_refused(path, rf'own\.tsv, line {line}: {name} is .*; it must be a (finite )?number')


def test_a_tsv_has_no_quotes(tmp_path):
    """In a CSV, everything between the two quotes would be one cell."""
    rows = [f'u{i}\ti\t{i}\t{i}\t{"5" if i not in (3, 8) else ""}"' for i in range(12)]
    source = load(
        write_file(tmp_path, '\n'.join([HEADER.replace(',', '\t') + '\tinches', *rows, '']), 'own.tsv')
    )
    assert [*source.train['labels'], *source.evaluation['labels']] == list(range(12))
    assert source.note == 'own.tsv has columns that are not read: inches'
    # A note says that quotes around cells are part of them.
    text = '\n'.join([HEADER, *(f'"u",i,{i},{i}' for i in range(10))]).replace(',', '\t')
    quoted = load(write_file(tmp_path, text, 'quoted.tsv'))
    assert quoted.ids['user'].raw.tolist() == ['"u"']
    assert quoted.note == (
        'quoted.tsv has 10 cells in double quotes, which are read as a part of them, as in every TSV '
        '(first: line 2)'
    )


def test_a_row_over_several_lines_is_reported(tmp_path):
    rows = [f'u,i{i},{i},{i},a' for i in range(10)]
    text = '\n'.join([f'{HEADER},note', *rows, 'u,x,1,20,"5', 'u,y,1,21,"', 'u,z,1,22,"6', '\n', '"', ''])
    assert load(write_file(tmp_path, text)).note == (
        'own.csv has columns that are not read: note; '
        'own.csv has 2 rows over several lines, by double quotes (first: lines 12 to 13)'
    )


def test_a_row_that_repeats_an_earlier_one_is_left_out_and_counted(tmp_path):
    rows = [f'u,i,{i % 5},{i}' for i in range(20)]
    once = load(write_file(tmp_path, '\n'.join([HEADER, *rows])), split='test')
    # The last training rating and the first test rating are repeated, with the numbers written differently.
    again = [f'u,i,{i % 5}.0,{i}e0' for i in (17, 18, 18, 17)]
    source = load(write_file(tmp_path, '\n'.join([HEADER, *again[:2], *rows, *again[2:]])), split='test')
    for part, expected in ((source.train, once.train), (source.evaluation, once.evaluation)):
        np.testing.assert_array_equal(part['labels'], expected['labels'])
    assert len(source.evaluation['labels']) == 2
    assert source.note == (
        'own.csv repeats 4 rows of the same user, item, rating and time, left out (first: line 21)'
    )
    # The same pair at another time is another rating.
    assert len(load(write_file(tmp_path, '\n'.join([HEADER, *rows, 'u,i,4,20']))).train['labels']) == 18


def test_two_ratings_at_the_same_time_are_refused_with_both_lines(tmp_path):
    rows = [f'u,i,{i},2024-01-{10 + i}' for i in range(10)]
    pair = r"own\.csv, lines 4 and 13: user 'u' and item 'i' have the ratings 2 and 5 at the same time"
    text = '\n'.join([HEADER, *rows, 'v,i,5,2024-01-12', 'u,i,5,2024-01-12'])
    assert_refused(write_file(tmp_path, text), pair + '; delete one of the two')
    assert_refused(
        write_file(tmp_path, f'{text}\nu,i,0,2024-01-11'), pair + r' \(1 more of this kind\); delete'
    )


def test_a_long_id_takes_its_own_length(tmp_path):
    """A NumPy array of str would take 60,000 characters for every user, 2.4 GB."""
    rows = [f'u{i},i{i},3,{i}' for i in range(10_000)]
    path = write_file(tmp_path, '\n'.join([HEADER, *rows, f'{"u" * 60_000},{"i" * 60_000},3,0']))
    tracemalloc.start()
    try:
        source = load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    assert max(map(len, source.ids['user'].raw.tolist())) == 60_000


def test_a_file_that_was_changed_is_read_anew(tmp_path):
    path = write_file(tmp_path, make_film_table())
    assert len(load(path).train['labels']) == 9
    write_file(tmp_path, make_film_table() + 'ann,x1,2,5,"Les enfants, du paradis",Drama|War\n')
    assert len(load(path).train['labels']) == 9
    assert load(path).train['labels'][0] == 2


def test_the_splits_are_those_of_movielens(tmp_path):
    text = '\n'.join([HEADER, *(f'u{i % 2},i,{i},{i}' for i in range(200))])
    config = make_config(write_file(tmp_path, text), split='validation', split_by='user', validation_slice=2)
    source = ratings_file.load(config.dataset, config.dataset)
    train, evaluation = ratings.split(np.arange(200) % 2, config.dataset)
    np.testing.assert_array_equal(source.train['labels'], train)
    np.testing.assert_array_equal(source.evaluation['labels'], evaluation)


# --- What is refused -------------------------------------------------------------------------------


def assert_refused(path, message, **changes):
    with pytest.raises(UserError, match=message) as error_info:
        load(path, **changes)
    assert '\n' not in str(error_info.value)


GOOD = '\n'.join([HEADER, *(f'u,i,3,{i}' for i in range(10)), ''])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (b'', 'own.csv is empty; its first line names its columns'),
        ('\n\n', 'own.csv is empty'),
        (HEADER, 'own.csv has a first line and no ratings'),
        (
            'u1,i1,3,100\n',
            r"user_column is 'user', but .*own.csv, line 1, .* It has u1, i1, 3, 100\.",
        ),
        (
            'userId,item,rating,timestamp\n',
            r"user_column is 'user', .* Did you mean userId\? It has userId",
        ),
        ('user,item,rating,timestamp,user\n', "own.csv, line 1: the column 'user' is there twice"),
        (GOOD + 'u,i,3\n', 'own.csv, line 12: a row of 3 cells, but there are 4 columns'),
        (GOOD + 'u,i,3,4,5\n', 'own.csv, line 12: a row of 5 cells'),
        (GOOD + ',i,3,4\n', r'own\.csv, line 12: user is empty\.'),
        (GOOD + 'u,  ,3,4\n', r'own\.csv, line 12: item is empty\.'),
        (GOOD + 'u,i,good,4\n', "own.csv, line 12: rating is 'good'; it must be a finite number"),
        (GOOD + 'u,i,,4\n', "own.csv, line 12: rating is ''; it must be a finite number"),
        (GOOD + 'u,i,nan,4\n', "own.csv, line 12: rating is 'nan'"),
        (GOOD + 'u,i,1e39,4\n', "own.csv, line 12: rating is '1e39'"),
        (GOOD + 'u,i,3,soon\n', "own.csv, line 12: timestamp is 'soon'; it must be a number, as in the rows"),
        (GOOD + 'u,i,3,inf\n', "own.csv, line 12: timestamp is 'inf'"),
        (f'{HEADER}\nu,i,3,soon\n', "own.csv, line 2: timestamp is 'soon'; .* number, or a date such as"),
        (f'{HEADER}\nu,i,3,2024-01-01\nu,i,3,5\n', "own.csv, line 3: timestamp is '5'; .* the same kind"),
        (GOOD.encode() + 'ü,i,3,4\n'.encode('latin-1'), r'own\.csv, line 12: it is not UTF-8'),
        (GOOD.encode('utf-16'), r'own\.csv, line 1: it is not UTF-8'),
        (GOOD.encode('utf-16-be'), r'own\.csv, line 1: a byte of 0'),
        (GOOD + '"u,i,3,4\n', r'own\.csv, line 12: unexpected end of data'),
        (GOOD + 'a,"b\n\nc,3,4\nd,5,6\n', r'own\.csv, lines 12 to 15: unexpected end of data'),
        (GOOD + 'a,"b\nc",3\n', r'own\.csv, lines 12 to 13: a row of 3 cells, but there are 4'),
        (GOOD + 'a,"b\nc",x,4\n', r"own\.csv, lines 12 to 13: rating is 'x'"),
        (GOOD + '"u"x,i,3,4\n', r'own\.csv, line 12: .* expected after'),
        (GOOD + 'u' * 200_000 + ',i,3,4\n', r'own\.csv, line 12: field larger than field limit'),
    ],
)
def test_a_file_that_says_something_else_is_refused_by_its_line(tmp_path, text, message):
    assert_refused(write_file(tmp_path, text), message)


def test_what_is_no_table_is_refused(tmp_path):
    assert_refused('', r'^dataset\.path is empty; name a CSV or TSV of ratings\.$')
    assert_refused(tmp_path / 'gone.csv', r'^dataset\.path .*gone\.csv is not there; name a CSV')
    assert_refused(tmp_path, r'^dataset\.path .* is a folder; name a CSV')
    assert_refused('~nobody-of-this-name/a.csv', r'^dataset\.path ~nobody-of-this-name/a\.csv ')
    assert_refused(
        write_file(tmp_path, GOOD, 'own.xlsx'),
        r'own\.xlsx is no table; the name of one ends in \.csv or \.tsv',
    )


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = write_file(tmp_path, GOOD)

    def deny_access(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(table.Rows, '_read', deny_access)
    assert_refused(path, r'own\.csv cannot be read: Permission denied\.$')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'words': ('plot',)},
            r"dataset\.words is 'plot', but .*own\.csv, line 1, has no such column\.",
        ),
        (
            {'words': ('title',), 'categories': ('title',)},
            r'dataset\.words and dataset\.categories both name',
        ),
        (
            {'categories': ('rating',)},
            r"rating_column and dataset\.categories both name .*'rating'",
        ),
        (
            {'words': ('item',), 'item_column': 'x'},
            r"words names the column 'item', which cannot be",
        ),
        ({'words': ('a title',)}, r"dataset\.words names the column 'a title', .* rename it"),
        (
            {'user_column': 'item'},
            r"user_column and dataset\.item_column both name the .*'item'",
        ),
        (
            {'filter_column': 'kinds'},
            r"column is 'kinds' and dataset\.filter_value is ''; set both",
        ),
        (
            {'filter_value': 'Drama'},
            r"column is '' and dataset\.filter_value is 'Drama'; set both",
        ),
        (
            {'filter_column': 'user', 'filter_value': 'ann'},
            r'user_column and dataset\.filter_column both name',
        ),
        (
            {'filter_column': 'kinds', 'filter_value': 'drama'},
            r"^dataset\.filter_value 'drama' is not in the column kinds .* mean Drama\? It has Drama, War\.",
        ),
        (
            {'filter_column': 'kinds', 'filter_value': 'War'},
            r"^dataset\.filter_value 'War' has no ratings in the test part",
        ),
    ],
)
def test_columns_that_contradict_the_file_or_each_other_are_refused(tmp_path, changes, message):
    assert_refused(write_file(tmp_path, make_film_table()), message, **changes)


def test_an_item_that_is_two_things_is_refused_with_both_lines(tmp_path):
    text = make_film_table() + 'ann,7,2,5,Les étés,Drama\n'
    message = r"own\.csv, line 12: title of '7' is 'Les étés', but 'Les Été' in line 2; an item has one"
    assert_refused(write_file(tmp_path, text), message, words=('title',))
    # A column that is not read may hold anything.
    assert load(tmp_path / 'own.csv', categories=('kinds',)).vocabularies['kinds'] == 3


def test_words_that_are_more_than_the_machine_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ratings.memory, 'of_machine', lambda: 10)
    message = r'values of 3 items take [\d.]+ GB, .* raise dataset\.min_title_word_count'
    assert_refused(write_file(tmp_path, make_film_table()), message, words=('title',))


def test_an_error_in_the_teachers_filter_is_reported_as_its_own(tmp_path):
    config = make_config(write_file(tmp_path, make_film_table()), split='test')
    config.batch_size = 4
    config.teacher.dataset.update({'filter_column': 'kinds', 'filter_value': 'Dramma'})
    with pytest.raises(UserError, match=r"^teacher\.dataset\.filter_value 'Dramma' is not .* Drama\?"):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# --- A run -----------------------------------------------------------------------------------------


def write_ratings(tmp_path):
    """Writes ratings that depend on the item and on whether the number of the user is odd."""
    rng = np.random.default_rng(0)
    start = datetime.datetime(2024, 1, 1)
    rows = []
    for i in range(400):
        user, item = rng.integers(12), rng.integers(9)
        time = (start + datetime.timedelta(minutes=i)).isoformat()
        rows.append(f'u-{user},film {item},{item % 5 + user % 2},{time},The {item},{"ab"[item % 2]}|all')
    return write_file(tmp_path, '\n'.join([f'{HEADER},title,kind', *rows]))


SMALL = {
    **{'dataset.words': ('title',), 'dataset.categories': ('kind',)},
    **{'dataset.filter_column': 'kind', 'dataset.filter_value': 'b', 'dataset.user_oov_rate': 0.0},
    **{'method': 'supervised', 'num_steps': 200, 'num_seeds': 1, 'batch_size': 16},
    **{'optimizer.learning_rate': 0.01, 'model.hidden': (16, 8), 'model.embedding_width': 8},
}


def test_a_run_from_the_command_line(tmp_path):
    flags = [f'--config.{key}={value}' for key, value in SMALL.items()]
    flags += [f'--config.dataset.path={write_ratings(tmp_path)}', f'--workdir={tmp_path / "run"}']
    completed = forked.run(['-m', 'td_jax.main', '--config=configs/ratings.py', *flags])
    assert completed.returncode == 0, completed.stderr
    assert 'supervised on own.csv b: test rmse ' in completed.stdout
    # Predicting the mean has an RMSE of 1.5.
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['mean'] < 1


def test_the_config_works_for_any_file_with_the_four_columns(tmp_path):
    config = make_config(write_file(tmp_path, GOOD))
    source = assembly.load_source(config, config.dataset)
    for model in (config.model, config.teacher.model):
        shapes = assembly.parameter_shapes(config, model, source)
        for name in ('user', 'item'):
            assert shapes[f'{name}_embedding']['embedding'].shape == (2, model.embedding_width)
