"""Runs that are compared were trained on the same data."""

import json

import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.data import SOURCES, description
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import cells, errors, journal, same_data, tables, tuning
from td_jax.training import assembly, finished, loop

COLUMNS = ['Drama'], ['CIFAR10']
SCRATCH, LD = 'Train from scratch', 'LD'


def test_the_part_of_the_data_is_what_the_config_says_of_it(small_config):
    same = (
        small_config(method='supervised'),
        small_config(method='ld', seed=4, model__hidden=(9, 9), teacher__num_steps=1),
    )
    others = small_config(dataset__split='validation'), small_config(dataset__classes=(0, 1))
    # No distillation ignores examples without labels, but is compared with methods that read them.
    unlabelled_options = {'dataset__examples_per_class': 3, 'dataset__unlabelled': 'rest'}
    for methods in (
        same,
        [small_config(method=method, **unlabelled_options) for method in ('supervised', 'ld')],
    ):
        assert len({same_data.part_of(config) for config in methods}) == 1
    assert len({same_data.part_of(config) for config in (*same, *others)}) == 3


def test_runs_of_one_part_agree():
    may = [('a', 'td', 'of may'), ('a', 'old', ''), ('b', 'other', 'of june'), ('a', 'ld', 'of may')]
    assert same_data.check(may) == {'a': ('td', 'of may'), 'b': ('other', 'of june')}
    with pytest.raises(
        UserError, match=r'^td and fd were trained on different data under one name \(of may, of'
    ):
        same_data.check([*may, ('a', 'fd', 'of june')])


@pytest.fixture
def table(one_table, small_config, monkeypatch, tmp_path):
    """The folder of runs of a table of two rows, in which nothing may be trained."""
    one_table({SCRATCH: {'method': 'supervised'}, LD: {'method': 'ld'}}, small_config)

    def fail_if_trained(self):
        raise AssertionError(f'{self.workdir} is trained')

    monkeypatch.setattr(loop.Loop, 'finish', fail_if_trained)
    return epath.Path(tmp_path / 'runs')


def write_run(root, row, change=None):
    """Writes the files of a finished run of a row, on digits that `change` may alter; returns its folder."""
    (config,) = cells.runs_of(tables.TABLES['tiny'], 'all', row)
    folder = cells.run_folder(root, config)
    folder.mkdir(parents=True)
    result = {**dict.fromkeys(finished.RESULT_KEYS), 'metric': 'accuracy', 'split': 'test', 'steps': 6}
    result |= {'values': [0.5, 0.6], 'seeds': [0, 1], 'mean': 0.55, 'stderr': 0.05, 'teacher': None}
    source = assembly.load_source(config, config.dataset)
    record = {'student': description.describe(change(source) if change else source)}
    for name, content in (
        (workdir.CONFIG, json.loads(config_lib.to_json(config))),
        (workdir.RESULT, result),
        (workdir.DATA, record),
    ):
        workdir.write(folder / name, json.dumps(content))
    return folder


def darken(source):
    evaluation = {**source.evaluation, 'image': source.evaluation['image'] / 2}
    return source._replace(evaluation=evaluation)


def test_a_table_has_runs_on_the_same_data_alone(table):
    folders = write_run(table, SCRATCH), write_run(table, LD, darken)
    for only_show in (True, False):
        with pytest.raises(
            UserError, match=r'supervised-\w+ and digits/ld-\w+ were trained on different data'
        ):
            cells.make(['tiny'], *COLUMNS, table, only_show)
    (folders[1] / workdir.DATA).unlink()
    rows = cells.make(['tiny'], *COLUMNS, table, True)['tiny']['all']
    assert rows[SCRATCH]['data'] == description.digest(
        workdir.read_json(folders[0] / workdir.DATA)['student']
    )
    assert rows[LD]['data'] == ''


@pytest.mark.parametrize('place', ['folder', 'file'])
def test_what_is_missing_is_not_run_on_other_data(table, place, tmp_path, monkeypatch):
    write_run(table, SCRATCH)
    stored, root = {}, table
    if place == 'file':
        path = epath.Path(tmp_path / 'errors.npz')
        errors.write(path, cells.make(['tiny'], *COLUMNS, table, True))
        stored, root = errors.read(path), epath.Path(tmp_path / 'other')
    with pytest.raises(AssertionError, match='is trained'):
        cells.make(['tiny'], *COLUMNS, root, False, stored_results=stored)
    load = SOURCES['digits']
    monkeypatch.setitem(SOURCES, 'digits', lambda config, task: darken(load(config, task)))
    with pytest.raises(
        UserError, match=r'^digits/supervised-\w+ was trained on other data than digits 5, 6, 7, 8, 9 is now'
    ):
        cells.make(['tiny'], *COLUMNS, root, False, stored_results=stored)
    # Existing results may still be shown.
    assert (
        cells.make(['tiny'], *COLUMNS, root, True, stored_results=stored)['tiny']['all'][SCRATCH]['mean']
        == 0.55
    )


def test_a_search_does_not_go_on_on_other_data(monkeypatch, tmp_path):
    """The journals record what their trials were trained on."""
    search = tuning.Search(tuning.CONFIGS['digits'], {}, tables.USUAL, 4, 1, 60)
    folders = [epath.Path(tmp_path / name) for name in ('runs', 'journals', 'o.json')]
    config = tuning.start_config(search, 'supervised', 'digits', 0)
    source = assembly.load_source(config, config.dataset)
    ran = []

    def run(root, config, name):
        """Records the data of a run; is interrupted in the third run."""
        ran.append(config)
        if len(ran) == 3:
            raise KeyboardInterrupt
        folder = cells.run_folder(root, config)
        folder.mkdir(parents=True)
        workdir.write(folder / workdir.CONFIG, config_lib.to_json(config))
        record = {'student': description.describe(assembly.load_source(config, config.dataset))}
        workdir.write(folder / workdir.DATA, json.dumps(record))
        return {60: 0.5}

    monkeypatch.setattr(tuning, '_curve', run)
    monkeypatch.setattr(tuning, 'describe_program', lambda config: '')
    with pytest.raises(KeyboardInterrupt):
        list(tuning.tune(search, ['supervised'], *folders, 1))
    path = tmp_path / 'journals' / 'digits-supervised.jsonl'
    digest = description.digest(description.describe(source))
    assert [json.loads(line)['data'] for line in path.read_text().splitlines()] == [digest] * 2
    assert set(journal.Journal(path).data.values()) == {digest}

    load, before = SOURCES['digits'], path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setitem(SOURCES, 'digits', lambda config, task: darken(load(config, task)))
        with pytest.raises(UserError, match=r'^digits/supervised-\w+ was trained on other data than digits'):
            list(tuning.tune(search, ['supervised'], *folders, 1))
    assert (len(ran), path.read_bytes()) == (3, before)
    # 4 + 2 + 1 trials, and the interrupted one.
    ((name, _),) = tuning.tune(search, ['supervised'], *folders, 1)
    assert (name, len(ran)) == ('supervised', 8)
