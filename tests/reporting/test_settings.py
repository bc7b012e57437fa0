"""Which runs are one row, which rows are compared, and what they are called."""

from etils import epath

from td_jax.reporting import runs, settings


def make_settings(root):
    """The settings of the runs under a folder."""
    found_runs = runs.find_runs(epath.Path(root)).runs
    return settings.make_settings(found_runs, runs.find_teachers(found_runs))


def list_runs_by_label(setting):
    """{label: names of its runs} of a setting."""
    return {row.label: [run.name for run in row.runs] for row in setting.rows}


def test_runs_that_differ_in_seeds_are_one_row(write_run, tmp_path):
    write_run(tmp_path / 'td_0', [0.5, 0.6], teacher='a')
    write_run(tmp_path / 'td_1', [0.7, 0.8, 0.9], teacher='b', seed=3, seed_step=2, teacher__seed=1)
    write_run(tmp_path / 'td_2', None, seed=100)
    # The same seeds again, and another teacher with the same teacher seed.
    write_run(tmp_path / 'td_3', [0.5, 0.6], teacher='a')
    write_run(tmp_path / 'td_4', [0.5], teacher='c', seed=50)
    # Options without effect on the result do not separate rows; others do.
    write_run(tmp_path / 'more', [0.5], teacher='a', seed=60, log_every=3, eval_batch_size=7)
    write_run(tmp_path / 'rounds', [0.5], td__rounds=2)
    write_run(tmp_path / 'scratch', [0.5], method='supervised')
    (setting,) = make_settings(tmp_path)
    assert setting.title == 'some data, validation rmse'
    runs_by_label = list_runs_by_label(setting)
    assert runs_by_label.pop('supervised') == ['scratch']
    assert list(runs_by_label.values()) == [['more', 'td_0', 'td_1', 'td_2'], ['rounds'], ['td_3'], ['td_4']]
    assert list(runs_by_label) == [
        'td, rounds 1 (more)',
        'td, rounds 2',
        'td, rounds 1 (td_3)',
        'td, rounds 1 (td_4)',
    ]
    (row,) = [row for row in setting.rows if row.label == 'td, rounds 1 (more)']
    assert row.values() == {0: 0.5, 1: 0.6, 3: 0.7, 5: 0.8, 7: 0.9, 60: 0.5}
    assert row.teachers() == {0: 'a', 1: 'a', 3: 'b', 5: 'b', 7: 'b', 60: 'a'}


def test_examples_without_labels_are_an_option_of_training(write_run, tmp_path):
    write_run(tmp_path / 'scratch', [0.5, 0.6], method='supervised', dataset__unlabelled='rest')
    write_run(tmp_path / 'without', [0.4, 0.5], method='ld')
    write_run(tmp_path / 'with', [0.3, 0.4], method='ld', dataset__unlabelled='rest')
    (setting,) = make_settings(tmp_path)
    assert list_runs_by_label(setting) == {
        'supervised': ['scratch'],
        'ld, dataset.unlabelled rest': ['with'],
        'ld, dataset.unlabelled none': ['without'],
    }
    for row in setting.rows[1:]:
        assert settings.find_baseline(row, setting.rows).row is setting.rows[0]


def test_the_first_examples_are_the_same_with_and_without_the_rest(write_run, tmp_path):
    """Where the rest is read, it is recorded with the first ones, in a digest of its own."""
    first = {'dataset__labelled_by': 'first', 'dataset__examples_per_class': 3}
    write_run(tmp_path / 'scratch', [0.5, 0.6], method='supervised', data='the first', **first)
    write_run(tmp_path / 'ld', [0.4, 0.5], method='ld', data='all', dataset__unlabelled='rest', **first)
    (setting,) = make_settings(tmp_path)
    assert list_runs_by_label(setting) == {'supervised': ['scratch'], 'ld': ['ld']}
    write_run(tmp_path / 'td', [0.4, 0.5], data='changed', dataset__unlabelled='rest', **first)
    assert len(make_settings(tmp_path)) == 3


def test_public_teachers_are_known_by_their_parameters(write_run, tmp_path):
    for name, teacher, seed in (('a', 'one', 0), ('b', 'one', 1), ('c', 'two', 2)):
        write_run(
            tmp_path / name, [0.5], teacher=teacher, seed=seed, teacher__seed=seed, teacher__pretrained=name
        )
    (setting,) = make_settings(tmp_path)
    assert [[run.name for run in row.runs] for row in setting.rows] == [['a', 'b'], ['c']]


def test_runs_on_other_data_of_the_same_name_are_not_compared(write_run, tmp_path):
    write_run(tmp_path / 'scratch', [0.5, 0.6], method='supervised', data='of may')
    write_run(tmp_path / 'ld', [0.4, 0.5], method='ld', data='of may')
    # A run of an older version does not record its data; it joins if all others have the same data.
    write_run(tmp_path / 'old', [0.7], method='ld', seed=9)
    (setting,) = make_settings(tmp_path)
    assert list_runs_by_label(setting) == {'supervised': ['scratch'], 'ld': ['ld', 'old']}
    write_run(tmp_path / 'td', [0.3, 0.4], data='of june')
    may, old, june = sorted(make_settings(tmp_path), key=lambda setting: -len(setting.rows))
    assert list_runs_by_label(may) == {'supervised': ['scratch'], 'ld': ['ld']}
    assert sorted([*list_runs_by_label(old).values(), *list_runs_by_label(june).values()]) == [
        ['old'],
        ['td'],
    ]
    titles = [setting.title for setting in (may, old, june)]
    assert len(set(titles)) == 3
    assert all(title.startswith('some data, validation rmse; dataset.content ') for title in titles)
    assert sum(title.endswith('content unknown') for title in titles) == 1
    (june,) = [setting for setting in (old, june) if 'td' in list_runs_by_label(setting)]
    assert settings.find_baseline(june.rows[0], june.rows).row is None


def test_a_damaged_record_is_a_remark(write_run, tmp_path):
    folder = write_run(tmp_path / 'run', [0.5])
    (folder / 'data.json').write_text('{}')
    (run,) = runs.find_runs(epath.Path(tmp_path)).runs
    assert run.state == runs.FINISHED
    (remark,) = run.remarks
    assert remark.startswith(f'{folder}/data.json is damaged; delete it')


def test_a_setting_is_data_and_architecture(write_run, tmp_path):
    changes = {
        'plain': {},
        'dropout': {'model__dropout': 0.5, 'optimizer__learning_rate': 0.5, 'method': 'ld'},
        'wide': {'model__hidden': (9, 3)},
        'test': {'dataset__split': 'test'},
        'wide_test': {'model__hidden': (9, 3), 'dataset__split': 'test', 'dataset__classes': (1, 2)},
    }
    for name, changed in changes.items():
        write_run(tmp_path / name, [0.5], **changed)
    assert {
        setting.title: list(list_runs_by_label(setting).values()) for setting in make_settings(tmp_path)
    } == {
        'some data, validation rmse; model.hidden 5, 3': [['dropout'], ['plain']],
        'some data, test rmse; dataset.classes 5, 6, 7, 8, 9, model.hidden 5, 3': [['test']],
        'some data, validation rmse; model.hidden 9, 3': [['wide']],
        'some data, test rmse; dataset.classes 1, 2, model.hidden 9, 3': [['wide_test']],
    }


def test_a_teacher_is_in_a_setting_only_with_students(write_run, tmp_path):
    write_run(tmp_path / 'td', [0.5])
    # A teacher in its student's workdir on the student's task; elsewhere on that task; and on another task.
    write_run(tmp_path / 'td' / 'teacher', [0.5], method='supervised', seed=7)
    write_run(tmp_path / 'twin', [0.5], method='supervised')
    write_run(tmp_path / 'big', [0.5], method='supervised', model__hidden=(99, 3))
    write_run(tmp_path / 'ld', [0.5], method='ld', teacher__checkpoint=str(tmp_path / 'twin'))
    write_run(tmp_path / 'fd', [0.5], method='fd', teacher__checkpoint=str(tmp_path / 'big'))
    (setting,) = make_settings(tmp_path)
    assert list(list_runs_by_label(setting).values()) == [['twin'], ['fd'], ['ld'], ['td']]


def test_the_nearest_run_from_scratch_is_the_baseline(write_run, tmp_path):
    def find_nearest():
        (setting,) = make_settings(tmp_path)
        (td,) = [row for row in setting.rows if row.method == 'td']
        return settings.find_baseline(td, setting.rows)

    write_run(tmp_path / 'td', [0.5], optimizer__learning_rate=0.5, num_steps=9)
    write_run(tmp_path / 'unfinished', None, method='supervised', optimizer__learning_rate=0.5, num_steps=9)
    assert find_nearest() == (None, 'no finished run without distillation')
    write_run(tmp_path / 'far', [0.5], method='supervised', optimizer__learning_rate=0.1)
    assert find_nearest().row.runs[0].name == 'far'
    write_run(tmp_path / 'near', [0.5], method='supervised', optimizer__learning_rate=0.5)
    assert find_nearest().row.runs[0].name == 'near'
    write_run(tmp_path / 'as_near', [0.5], method='supervised', num_steps=9)
    assert find_nearest() == (None, '2 runs without distillation are equally near')
    write_run(tmp_path / 'exact', [0.5], method='supervised', optimizer__learning_rate=0.5, num_steps=9)
    # It joins the unfinished row with these options.
    assert [run.name for run in find_nearest().row.runs] == ['exact', 'unfinished']


def test_a_config_of_another_version_is_compared_as_it_is(write_run, tmp_path):
    for name, seed in (('a', 0), ('b', 5)):
        folder = write_run(tmp_path / name, [0.5], seed=seed)
        path = folder / 'config.json'
        path.write_text(path.read_text().replace('"method": "td"', '"method": "mine"'))
    (setting,) = make_settings(tmp_path)
    assert list_runs_by_label(setting) == {'mine': ['a', 'b']}
