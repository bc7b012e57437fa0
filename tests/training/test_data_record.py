"""The record of a run's data: predictions without the data, and refusals on other data."""

import csv
import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
from etils import epath

import td_jax
from td_jax import config as config_lib
from td_jax.configs import images as images_config
from td_jax.configs import ratings as ratings_config
from td_jax.errors import UserError
from td_jax.exporting import formats
from td_jax.predicting import answers
from td_jax.training import finished, loop, teachers
from td_jax.training.run import train

STEPS = {
    **{'num_seeds': 1, 'num_steps': 2, 'batch_size': 8, 'eval_batch_size': 64, 'diagnostics': False},
    **{'teacher.num_steps': 2, 'optimizer.warmup_steps': 0, 'teacher.optimizer.warmup_steps': 0},
}
ROWS = [
    f'u{i % 7},i{i % 5},{1 + (3 * i) % 5},{i},{"crime|city" if i % 5 % 2 else "city"},{i % 3}'
    for i in range(100)
]
HEADER = 'user,item,rating,timestamp,about,mood'


def read_files(folder):
    """{path: content} of everything under a folder but the locks."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and path.name != '.lock'
    }


def copy_with(config, **changes):
    """A copy of a config with some other values, keys with __ for dots."""
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return other


def assert_refused(config, folder, message):
    """Asserts that a run is refused in one line, and that its folder stays as it was."""
    before = read_files(folder)
    with pytest.raises(UserError, match=message) as error_info:
        train(config, folder)
    assert '\n' not in str(error_info.value)
    assert read_files(folder) == before
    assert folder.exists() == bool(before)


# --- Ratings ---------------------------------------------------------------------------------------


def write_table(path, rows=ROWS, header=HEADER):
    path.write_text('\n'.join([header, *rows, '']))


def rename_in_rows(rows=ROWS):
    """Renames u3 so that it sorts last, which changes the numbers of all users after it."""
    return [row.replace('u3,', 'zed,') for row in rows]


@pytest.fixture(scope='module')
def recommender_run(tmp_path_factory):
    """(config, workdir, table) of a finished recommender of crime books, whose teacher knows all books."""
    folder = tmp_path_factory.mktemp('ratings')
    write_table(folder / 'own.csv')
    config = ratings_config.get_config()
    config.update_from_flattened_dict(
        {
            **STEPS,
            **{'method': 'ld', 'model.hidden': (8, 4), 'teacher.model.hidden': (12, 8)},
            **{'model.embedding_width': 5, 'teacher.model.embedding_width': 5},
            **{'dataset.path': str(folder / 'own.csv'), 'dataset.categories': ('about',)},
            **{'dataset.filter_column': 'about', 'dataset.filter_value': 'crime'},
        }
    )
    train(config, folder / 'run')
    return config, folder / 'run', folder / 'own.csv'


@pytest.fixture
def copied_run(recommender_run, tmp_path):
    """A copy of recommender_run that may be changed, as may the table, which is restored afterwards."""
    config, folder, table = recommender_run
    yield config, shutil.copytree(folder, tmp_path / 'run'), table
    write_table(table)


def predict_and_recommend(folder, target):
    """(predictions for all pairs of some users and items, recommendations for u3)."""
    pairs = [f'{user},{item}' for user in ('u0', 'u3', 'u6', 'zed') for item in ('i1', 'i3', 'i4', 'new')]
    input_file, output_file = target.with_suffix('.asked.csv'), target.with_suffix('.csv')
    input_file.write_text('\n'.join(['user,item', *pairs]))
    answers.predict(epath.Path(folder), epath.Path(input_file), epath.Path(output_file))
    with output_file.open(newline='') as file:
        rows = list(csv.DictReader(file))
    return rows, answers.recommend(epath.Path(folder), 'u3', 3)


def rename_users(table):
    write_table(table, rename_in_rows())


def add_user(table):
    write_table(table, [*ROWS, 'a new one,i3,4,200,crime|city,0'])


def remove_table(table):
    table.unlink()


@pytest.fixture(scope='module')
def predictions_before(recommender_run, tmp_path_factory):
    return predict_and_recommend(recommender_run[1], tmp_path_factory.mktemp('before') / 'said')


@pytest.mark.parametrize('change', [rename_users, add_user, remove_table])
def test_a_student_predicts_as_it_was_trained_whatever_the_table_says_now(
    copied_run, predictions_before, change, tmp_path
):
    _, folder, table = copied_run
    change(table)
    rows, offered = predict_and_recommend(folder, tmp_path / 'after')
    assert (rows, offered) == predictions_before
    assert len({row['rating'] for row in rows}) > 4
    # u3 is known as in training, and zed is unknown.
    assert {row['user'] for row in rows if 'user' in row['unknown'].split()} == {'zed'}
    assert len(offered.splitlines()) < 4 or 'unknown' not in offered


@pytest.mark.parametrize('change', [rename_users, remove_table])
def test_an_export_has_the_ids_of_training(copied_run, change, tmp_path):
    _, folder, table = copied_run
    change(table)
    report = formats.export(epath.Path(folder), 'stablehlo', epath.Path(tmp_path / 'student'))
    numbers = json.loads((tmp_path / 'student' / 'vocabulary.json').read_text())
    users, items = ({row.split(',')[place] for row in ROWS} for place in range(2))
    assert numbers == {
        'user': {name: number for number, name in enumerate(sorted(users))},
        'item': {name: number for number, name in enumerate(sorted(items))},
    }
    # The teacher is reported, too, although its data are missing.
    assert [line.split()[0] for line in report.splitlines() if line.startswith(('student', 'teacher'))] == [
        'student',
        'teacher',
    ]


def change_unread_column(table):
    write_table(table, [row[:-1] + 'x' for row in ROWS])


def reverse_rows(table):
    write_table(table, ROWS[::-1])


@pytest.mark.parametrize('change', [change_unread_column, reverse_rows])
def test_what_is_not_read_may_change(copied_run, change, monkeypatch):
    config, folder, table = copied_run
    change(table)
    monkeypatch.setattr(loop.Loop, 'finish', fail_if_trained)
    assert train(config, folder) == finished.read_result(epath.Path(folder))


def fail_if_trained(self):
    raise AssertionError(f'{self.workdir} is trained')


def change_rating(table):
    write_table(table, [ROWS[0].replace('u0,i0,1,', 'u0,i0,5,'), *ROWS[1:]])


def change_category(table):
    write_table(table, [row.replace('crime|city', 'crime') if ',i3,' in row else row for row in ROWS])


def leave_as_it_is(folder):
    """Leaves a run as it is."""


def remove_result(folder):
    (folder / 'result.json').unlink()


@pytest.mark.parametrize('state', [leave_as_it_is, remove_result])
@pytest.mark.parametrize('more_steps', [0, 2])
def test_a_run_is_not_continued_on_other_data(copied_run, state, more_steps):
    config, folder, table = copied_run
    rename_users(table)
    state(folder)
    assert_refused(
        copy_with(config, num_steps=2 + more_steps),
        folder,
        rf'^{folder} was trained on other data than own\.csv crime is now: user: u3 -> zed\. Put the data',
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        # 100 rows are cut at 90, and so are 101; the last 4 of the 40 of crime are the test, then 5 of 41.
        (add_user, r'user: 1 added \(a new one\); evaluation examples: 4 there, 5 here'),
        (change_rating, r'the teacher of .*/run was trained .* now: training examples: other content'),
        (change_category, r'own\.csv crime is now: bags/about: other content'),
    ],
)
def test_what_has_changed_is_reported(copied_run, change, message):
    config, folder, table = copied_run
    change(table)
    assert_refused(config, folder, message)


def test_a_finished_run_whose_data_are_gone_says_so(copied_run, capsys):
    config, folder, table = copied_run
    table.unlink()
    assert train(config, folder) == finished.read_result(epath.Path(folder))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{folder} is finished; whether its data have changed is not known: dataset.path')
    assert_refused(copy_with(config, num_steps=4), folder, r'dataset\.path .* is not there')


def test_a_teacher_does_not_teach_on_other_data(copied_run, tmp_path):
    """Neither a named teacher nor one in the student's workdir."""
    config, folder, table = copied_run
    rename_users(table)
    named = copy_with(config, teacher__checkpoint=str(folder / 'teacher'))
    message = r'was trained on other data than own\.csv all is now: user: u3 -> zed'
    assert_refused(named, tmp_path / 'other', f'^the teacher in {folder / "teacher"} {message}')
    shutil.copytree(folder / 'teacher', tmp_path / 'beside' / 'teacher')
    assert_refused(config, tmp_path / 'beside', f'{tmp_path / "beside" / "teacher"} {message}')
    (tmp_path / 'beside' / 'teacher' / 'result.json').unlink()
    assert_refused(config, tmp_path / 'beside', f'{tmp_path / "beside" / "teacher"} {message}')


def test_a_new_user_does_not_blame_the_teachers_checkpoint(copied_run, tmp_path):
    config, folder, table = copied_run
    # The rating is early enough to be in training.
    write_table(table, ['a new one,i3,4,-1,crime|city,0', *ROWS])
    named = copy_with(config, teacher__checkpoint=str(folder / 'teacher'))
    assert_refused(
        named, tmp_path / 'other', r'^the teacher in .* was trained on other .* user: 1 added \(a new one\)'
    )


def test_examples_are_read_from_the_data_set_that_was_trained_on_alone(copied_run):
    _, folder, table = copied_run
    run = td_jax.load(folder)
    assert len(run.source.train['labels']) == 36
    rename_users(table)
    with pytest.raises(UserError, match=r'was trained on other data than own\.csv .* user: u3 -> zed'):
        td_jax.load(folder)
    with pytest.raises(UserError, match='was trained on other data'):
        teachers.load_finished_with_teacher(epath.Path(folder), with_examples=True)


def test_a_run_of_an_older_version_says_so_and_continues(copied_run, predictions_before, tmp_path, capsys):
    config, folder, table = copied_run
    for place in (folder, folder / 'teacher'):
        for name in ('data.json', 'data.npz'):
            (place / name).unlink()
    assert predict_and_recommend(folder, tmp_path / 'after') == predictions_before
    warning = f'{folder} does not say what it was trained on, as an older version of td_jax left it'
    assert capsys.readouterr().err.count(warning) == 1
    rename_users(table)
    assert train(config, folder) == finished.read_result(epath.Path(folder))
    # Without a record, ids are those of the changed table.
    assert predict_and_recommend(folder, tmp_path / 'others') != predictions_before
    # A run with steps on unknown data gets no record of today's data.
    assert train(copy_with(config, num_steps=3), folder)['steps'] == 3
    assert not (folder / 'data.json').exists()
    assert f'{folder / "teacher"} does not say what it was trained on' in capsys.readouterr().err
    write_table(table, ['a new one,i3,4,-1,crime|city,0', *ROWS])
    with pytest.raises(UserError, match=r'does not fit its model: .*; its data set may have changed since'):
        finished.load(epath.Path(folder))


@pytest.mark.parametrize('text', ['{}', '{"student": 3}', '{"student": {"name": "a"}}', '[]', '{'])
def test_a_damaged_record_is_one_line(copied_run, text):
    config, folder, _ = copied_run
    (folder / 'data.json').write_text(text)
    assert_refused(config, folder, r'data\.json (is damaged|cannot be read|does not hold)')
    with pytest.raises(UserError, match=r'data\.json (is damaged|cannot be read|does not hold)'):
        finished.load(epath.Path(folder))


def test_arrays_that_are_not_of_the_record_are_refused(copied_run):
    _, folder, _ = copied_run
    shutil.copy(folder / 'teacher' / 'data.npz', folder / 'data.npz')
    for _ in range(2):
        with pytest.raises(
            UserError, match=r'data\.npz is missing or does not belong to the data\.json next to it'
        ):
            finished.load(epath.Path(folder))
        (folder / 'data.npz').unlink(missing_ok=True)


def test_what_is_left_of_a_run_that_never_saved_binds_nobody(copied_run, tmp_path):
    config, folder, table = copied_run
    shutil.copytree(folder / 'teacher', tmp_path / 'new')
    for name in ('result.json', 'config.json', 'errors.npz'):
        (tmp_path / 'new' / name).unlink()
    shutil.rmtree(tmp_path / 'new' / 'checkpoints')
    rename_users(table)
    alone = copy_with(config_lib.teacher_run(config), num_steps=1)
    assert train(alone, tmp_path / 'new')['steps'] == 1
    assert 'zed' in json.loads((tmp_path / 'new' / 'data.json').read_text())['student']['ids']['user']['raw']


# --- Images ----------------------------------------------------------------------------------------


def write_images(folder):
    rng = np.random.default_rng(0)
    for name, lightest in (('ant', 120), ('cat', 256)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(lightest - 120, lightest, (9, 9, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f'{i}.png')


@pytest.fixture(scope='module')
def image_run(tmp_path_factory):
    """(config, workdir, folder of images) of a finished run on images."""
    folder = tmp_path_factory.mktemp('images')
    write_images(folder / 'own')
    config = images_config.get_config()
    config.update_from_flattened_dict(
        {
            **STEPS,
            **{'method': 'supervised', 'model.initial': 'random', 'dataset.image_size': 8},
            **{'dataset.path': str(folder / 'own'), 'model.layers': 1, 'model.width': 8, 'model.mlp': 8},
            **{'model.heads': 2, 'model.patch': 4, 'model.split': 1},
        }
    )
    train(config, folder / 'run')
    return config, folder / 'run', folder / 'own'


@pytest.fixture
def copied_image_run(image_run, tmp_path):
    """A copy of image_run that may be changed, as may the images, which are restored afterwards."""
    config, folder, own = image_run
    yield config, shutil.copytree(folder, tmp_path / 'run'), own
    shutil.rmtree(own, ignore_errors=True)
    write_images(own)


def test_a_class_keeps_its_name_and_its_folder_may_be_gone(copied_image_run, tmp_path):
    config, folder, own = copied_image_run
    shutil.copytree(own / 'ant', tmp_path / 'asked')

    def predict(name):
        target = tmp_path / f'{name}.csv'
        answers.predict(epath.Path(folder), epath.Path(tmp_path / 'asked'), epath.Path(target))
        return target.read_text()

    first = predict('first')
    assert first.startswith('file,class,probability,p(ant),p(cat)\n')
    (own / 'cat').rename(own / 'kitten')
    assert predict('renamed') == first
    assert_refused(config, folder, r'than own ant, kitten is now: class: cat -> kitten\. Put')
    shutil.rmtree(own)
    assert predict('gone') == first
    formats.export(epath.Path(folder), 'stablehlo')
    signature = json.loads((folder / 'student_stablehlo' / 'signature.json').read_text())
    assert signature['labels'] == ['ant', 'cat']
    assert signature['student'] == 'supervised on own ant, cat'
    write_images(own)
    (own / 'cat').rename(own / 'kitten')
    remove_result(folder)
    assert_refused(config, folder, r'class: cat -> kitten\. Put')


def test_an_image_of_the_same_name_size_and_time_is_another_one(copied_image_run):
    config, folder, own = copied_image_run
    file = own / 'cat' / '3.png'
    before = file.stat()
    with PIL.Image.open(file) as image:
        pixels = np.asarray(image)
    # Without compression, so that the sizes of the files agree.
    PIL.Image.fromarray(pixels).save(file, compress_level=0)
    size = file.stat().st_size
    assert_refused(config, folder, 'is now: images of cat: other content')
    PIL.Image.fromarray(255 - pixels).save(file, compress_level=0)
    assert file.stat().st_size == size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_refused(config, folder, 'is now: images of cat: other content')


def test_files_that_were_copied_are_the_same(copied_image_run, tmp_path, monkeypatch):
    config, folder, own = copied_image_run
    shutil.copytree(own, tmp_path / 'copy')
    shutil.rmtree(own)
    shutil.copytree(tmp_path / 'copy', own, copy_function=shutil.copyfile)
    monkeypatch.setattr(loop.Loop, 'finish', fail_if_trained)
    assert train(config, folder)['steps'] == 2
    (own / 'cat' / 'more.png').write_bytes((own / 'cat' / '1.png').read_bytes())
    assert_refused(config, folder, r'images of cat: 12 there, 13 here')
