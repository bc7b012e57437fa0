"""Finding the runs under a folder: every run once, with the state that its files show."""

import json
import os
import pathlib

import pytest
from etils import epath

from td_jax.errors import UserError
from td_jax.reporting import runs

LINES = [{'step': 2, 'train_loss': 1.5}, {'step': 4, 'train_loss': 1.25}]


def find_states(root):
    """{name: (state, reason)} of the runs under a folder."""
    return {run.name: (run.state, run.reason) for run in runs.find_runs(epath.Path(root)).runs}


def test_runs_are_found_wherever_they_lie(write_run, tmp_path):
    write_run(tmp_path / 'deep' / 'er' / 'td', [0.5], lines=LINES)
    write_run(tmp_path / 'deep' / 'er' / 'td' / 'teacher', [0.5], method='supervised')
    write_run(tmp_path / 'ld', [0.25], method='ld')
    # Not runs: an export, which has a config of another kind, and folders in checkpoints.
    (tmp_path / 'ld' / 'student_safetensors').mkdir()
    (tmp_path / 'ld' / 'student_safetensors' / 'config.json').write_text('{}')
    write_run(tmp_path / 'ld' / 'checkpoints' / '6', [0.5])
    os.symlink(tmp_path, tmp_path / 'deep' / 'loop')
    os.symlink(tmp_path / 'nowhere', tmp_path / 'deep' / 'broken')
    listing = runs.find_runs(epath.Path(tmp_path))
    assert [run.name for run in listing.runs] == ['deep/er/td', 'deep/er/td/teacher', 'ld']
    assert {run.state for run in listing.runs} == {runs.FINISHED}
    assert [line['step'] for line in listing.runs[0].lines] == [2, 4]
    assert runs.find_teachers(listing.runs) == {'deep/er/td/teacher': ['deep/er/td']}
    assert listing.unreadable == ()
    # The folder of a single run is a folder of runs, too.
    assert list(find_states(tmp_path / 'ld')) == ['.']
    assert list(find_states(tmp_path / 'deep' / 'er' / 'td')) == ['.', 'teacher']


def test_a_teacher_is_known_by_the_config_of_its_student(write_run, tmp_path):
    write_run(tmp_path / 'a' / 'big', [0.5], method='supervised')
    places = {'here': tmp_path / 'a' / 'big', 'moved': pathlib.Path('/before/big'), 'gone': '/before/other'}
    for name, place in places.items():
        write_run(tmp_path / 'a' / name, [0.5], teacher__checkpoint=str(place))
    # A run from scratch has no teacher, whatever its config says.
    write_run(tmp_path / 'a' / 'own', [0.5], method='supervised', teacher__checkpoint=str(places['here']))
    found_runs = runs.find_runs(epath.Path(tmp_path)).runs
    assert runs.find_teachers(found_runs) == {'a/big': ['a/here', 'a/moved']}


def test_a_run_that_is_not_finished_says_why(write_run, tmp_path):
    write_run(tmp_path / 'stopped', None, lines=LINES)
    diverged = write_run(tmp_path / 'diverged', None, lines=LINES)
    (diverged / 'diverged.json').write_text(json.dumps({'reason': 'the loss is not finite at step 5'}))
    write_run(tmp_path / 'further', [0.5], lines=[*LINES, {'step': 8, 'train_loss': 1.0}])
    write_run(tmp_path / 'overflowed', None, lines=[*LINES, {'step': 6, 'train_gradient_norm': float('inf')}])
    for name in ('begun', 'no_config'):
        (tmp_path / name).mkdir()
    (tmp_path / 'begun' / '.lock').touch()
    (tmp_path / 'no_config' / 'metrics.jsonl').write_text('{"step": 3, "train_loss": 1.0}\n')
    state_by_name = find_states(tmp_path)
    at_4 = 'at step 4 of 6 when its metrics were last written; under way, or stopped'
    assert state_by_name == {
        'begun': (runs.UNFINISHED, 'nothing is saved yet; it is under way, or was stopped'),
        'diverged': (runs.DIVERGED, 'the loss is not finite at step 5'),
        'further': (runs.UNFINISHED, 'trained on since its result of step 6: at step 8 of 6'),
        'no_config': (runs.UNFINISHED, 'nothing is saved yet, at step 3; it is under way, or was stopped'),
        'overflowed': (
            runs.UNFINISHED,
            f'{at_4.replace("4", "6", 1)}; train_gradient_norm is not finite at step 6',
        ),
        'stopped': (runs.UNFINISHED, at_4),
    }


def change_json(path, **changes):
    """Rewrites a JSON file with other values; keys that are set to None are removed."""
    content = {**json.loads(path.read_text()), **changes}
    gone = {key for key, value in changes.items() if value is None}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in gone}))


def test_what_is_damaged_is_no_traceback(write_run, tmp_path):
    def write_changed_run(name, **changes):
        folder = pathlib.Path(write_run(tmp_path / name, [0.5, 0.25], lines=LINES))
        change_json(folder / 'result.json', **changes)
        return folder

    for name, changes in {
        'missing': {'values': None},
        'text': {'values': [0.5, 'a']},
        'fewer': {'values': [0.5]},
        'none': {'values': [], 'seeds': []},
        'infinite': {'values': [0.5, float('nan')]},
        'huge': {'values': [0.5, 10**400]},
        'twice': {'seeds': [1, 1]},
        'a_list': {'metric': ['rmse']},
        'a_teacher': {'teacher': 'good'},
    }.items():
        write_changed_run(name, **changes)
    (write_changed_run('empty') / 'result.json').write_text('')
    (write_changed_run('a_number') / 'result.json').write_text('3')
    (write_changed_run('bytes') / 'config.json').write_bytes(b'\xff\xfe{')
    (write_changed_run('nested') / 'config.json').write_text('[' * 100_000)
    (write_changed_run('lone') / 'config.json').unlink()
    folder = write_changed_run('folder')
    (folder / 'result.json').unlink()
    (folder / 'result.json').mkdir()
    state_by_name = find_states(tmp_path)
    assert {state for state, _ in state_by_name.values()} == {runs.DAMAGED}
    for name, (_, reason) in state_by_name.items():
        file = 'config.json' if name in ('bytes', 'nested', 'lone') else 'result.json'
        assert f'{tmp_path / name / file} ' in reason
        assert '\n' not in reason
    assert 'config.json is missing' in state_by_name['lone'][1]


def test_what_can_be_read_of_a_run_is(write_run, tmp_path):
    """A damaged line is left out, and a config with unknown options is shown as it is."""
    lines = [
        {'step': 2, 'train_loss': 1.5, 'text': 'a', 'list': [1], 'yes': True},
        {'step': -1},
        {'step': 10**30},
    ]
    folder = pathlib.Path(write_run(tmp_path / 'run', [0.5], lines=lines))
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "train_loss": 1.0, "train_task": NaN}\n[]\n{"step": true}\n{"step": 5, "tr')
    change_json(folder / 'config.json', method='mine', option=3)
    (run,) = runs.find_runs(epath.Path(tmp_path)).runs
    assert run.state == runs.FINISHED
    assert [line.keys() for line in run.lines] == [
        {'step', 'train_loss'},
        {'step', 'train_loss', 'train_task'},
    ]
    assert run.config is None
    assert (run.stored['method'], run.stored['option'], run.stored['batch_size']) == ('mine', 3, 8)
    assert run.remarks == ('config.json: option is a key of another version of td_jax.',)
    # A folder in place of a file.
    (folder / 'metrics.jsonl').unlink()
    (folder / 'metrics.jsonl').mkdir()
    (run,) = runs.find_runs(epath.Path(tmp_path)).runs
    assert run.state == runs.FINISHED
    assert 'metrics.jsonl cannot be read: Is a directory.' in run.remarks[0]


@pytest.mark.parametrize(
    'changes',
    [
        {'num_steps': 'many'},
        {'model': 3},
        {'method': 'tdd'},
        {'optimizer': {'learning_rate': [1]}},
    ],
)
def test_a_config_that_makes_no_sense_is_a_remark(write_run, tmp_path, changes):
    folder = write_run(tmp_path / 'run', [0.5])
    change_json(pathlib.Path(folder) / 'config.json', **changes)
    (run,) = runs.find_runs(epath.Path(tmp_path)).runs
    assert (run.state, run.config) == (runs.FINISHED, None)
    assert run.remarks[0].startswith('config.json: ')


def test_a_folder_without_runs_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'config.json').write_text('{}')
    with pytest.raises(UserError, match=f'^--workdir {tmp_path} holds no run of td_jax; name the workdir'):
        runs.find_runs(epath.Path(tmp_path))
    with pytest.raises(UserError, match=r'none cannot be read: No such file or directory\.$'):
        runs.find_runs(epath.Path(tmp_path / 'none'))
    with pytest.raises(UserError, match=r'file cannot be read: Not a directory\.$'):
        runs.find_runs(epath.Path(tmp_path / 'file'))


def test_a_folder_that_cannot_be_read_is_reported(write_run, tmp_path, monkeypatch):
    write_run(tmp_path / 'run', [0.5])
    (tmp_path / 'closed').mkdir()
    plain = type(epath.Path(tmp_path)).iterdir

    def iterdir(path):
        if path.name == 'closed':
            raise PermissionError(13, 'Permission denied')
        return plain(path)

    monkeypatch.setattr(type(epath.Path(tmp_path)), 'iterdir', iterdir)
    listing = runs.find_runs(epath.Path(tmp_path))
    assert [run.name for run in listing.runs] == ['run']
    assert listing.unreadable == (('closed', 'Permission denied'),)
