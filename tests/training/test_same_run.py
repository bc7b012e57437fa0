"""The identity of a run: what may change between two calls, and what is refused."""

import json
import os
import shutil

import jax
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.devices import fingerprint
from td_jax.errors import UserError
from td_jax.reproduction import cells
from td_jax.training import assembly, loop, teachers
from td_jax.training.run import train
from tests import forked

# Shared programs would hide what these tests check, because the same run has the same program.
pytestmark = pytest.mark.usefixtures('own_programs')

SMALL = {'model__dropout': 0.2, 'teacher__num_steps': 2, 'num_steps': 4}


def copy_with(config, **changes):
    """A copy of a config with some other values, keys as in small_config."""
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return other


def fail_if_trained(self):
    """Replaces the `finish` of a Loop, which must not train."""
    raise AssertionError(f'{self.workdir} is trained')


@pytest.fixture(scope='module')
def finished_run(small_config, tmp_path_factory):
    """(config, workdir) of a finished run of TD with a teacher of its own; copy it before it is changed."""
    config, folder = small_config(**SMALL), tmp_path_factory.mktemp('same') / 'run'
    train(config, folder)
    return config, folder


@pytest.fixture
def copied_run(finished_run, tmp_path):
    config, folder = finished_run
    return config, shutil.copytree(folder, tmp_path / 'run')


@pytest.fixture
def copied_teacher(finished_run, tmp_path):
    """(config, workdir) of a copy of its teacher's run, of two steps."""
    config, folder = finished_run
    return config_lib.teacher_run(config), shutil.copytree(folder / 'teacher', tmp_path / 'run')


# Options without effect, with other values than in the small config.
ANOTHER_WAY = {
    'save_every': 3,
    'log_every': 1,
    'eval_batch_size': 7,
    'mesh__data': 1,
    'td__remat_policy': 'nothing_saveable',
    'eval_every': 3,
}


@pytest.mark.long
def test_what_has_no_effect_has_none_on_the_result(finished_run, tmp_path):
    config, folder = finished_run
    shutil.copytree(folder / 'teacher', tmp_path / 'run' / 'teacher')
    result = train(copy_with(config, **ANOTHER_WAY), tmp_path / 'run')
    before = json.loads((folder / 'result.json').read_text())
    assert result['values'] == before['values']
    assert result['teacher_fingerprint'] == before['teacher_fingerprint']


SETTINGS = {
    'default_prng_impl': lambda: jax.default_prng_impl('rbg'),
    'threefry_partitionable': lambda: jax.threefry_partitionable(False),
    'enable_x64': lambda: jax.enable_x64(True),
}


@pytest.mark.parametrize('setting', SETTINGS)
def test_a_seed_has_the_same_random_numbers_whatever_jax_is_set_to(setting, finished_run, tmp_path, outcome):
    """For initial parameters, the order of examples, dropout and the rounds."""
    config, folder = finished_run
    with SETTINGS[setting]():
        train(config, tmp_path / 'run')
    assert outcome(tmp_path / 'run')['arrays'] == outcome(folder)['arrays']


@pytest.mark.parametrize('setting', SETTINGS)
def test_an_untrained_teacher_is_the_same_whatever_jax_is_set_to(setting, small_config, tmp_path):
    """Also outside of a run: for its fingerprint, for CKA and for an export."""
    config = small_config(teacher__control='untrained')
    source = teachers.source_of(config, assembly.load_source(config, config.dataset))
    expected = fingerprint.of(teachers.load(config, epath.Path(tmp_path), source).params)
    with SETTINGS[setting]():
        assert fingerprint.of(teachers.load(config, epath.Path(tmp_path), source).params) == expected


def test_what_has_no_effect_may_change_between_two_calls(copied_run, monkeypatch, capsys):
    config, folder = copied_run
    other = copy_with(config, **ANOTHER_WAY, ld__weights__logits=7.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, 'finish', fail_if_trained)
        assert train(other, folder)['steps'] == 4
    assert train(copy_with(other, num_steps=6), folder)['steps'] == 6
    assert 'continues at step 4 of 6' in capsys.readouterr().err
    # The stored config is then that of the last call.
    assert json.loads((folder / 'config.json').read_text())['save_every'] == 3


TWO_DEVICES = """
import json, pathlib, sys
from etils import epath
from td_jax import config as config_lib
from td_jax.training.run import train
folder = epath.Path(sys.argv[1])
config = config_lib.from_json(json.loads((folder / 'config.json').read_text()))
config.mesh.data, config.mesh.fsdp, config.num_steps = 1, 2, 6
print(json.dumps(train(config, folder)['values']))
"""


@pytest.mark.long
def test_a_run_continues_on_other_devices(finished_run, tmp_path):
    config, folder = finished_run
    one, two = (shutil.copytree(folder, tmp_path / name) for name in ('one', 'two'))
    completed = forked.run(
        ['-c', TWO_DEVICES, str(two)], env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2', 'JAX_PLATFORMS': 'cpu'}
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    assert 'continues at step 4 of 6' in completed.stderr
    assert json.loads(completed.stdout) == pytest.approx(
        train(copy_with(config, num_steps=6), one)['values'], abs=2e-3
    )


def test_a_key_that_is_not_in_a_stored_config_is_at_its_default(copied_run, monkeypatch):
    config, folder = copied_run
    stored = json.loads((folder / 'config.json').read_text())
    del stored['td']['noise_std'], stored['teacher']['optimizer']
    (folder / 'config.json').write_text(json.dumps(stored))
    monkeypatch.setattr(loop.Loop, 'finish', fail_if_trained)
    assert train(config, folder)['steps'] == 4
    with pytest.raises(UserError, match=r'config: td\.noise_std \(0\.0 there, 0\.5 here\)\. Choose'):
        train(copy_with(config, td__noise_std=0.5), folder)


def test_a_key_that_is_not_known_is_refused_by_name(copied_run):
    config, folder = copied_run
    stored = json.loads((folder / 'config.json').read_text())
    stored['td']['weights']['angle'] = 0.5
    (folder / 'config.json').write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r'td\.weights\.angle \(0\.5 there, not known to this version of td_jax\)'
    ):
        train(config, folder)


# --- The location of the teacher -------------------------------------------------------------------


@pytest.fixture
def run_with_named_teacher(finished_run, tmp_path):
    """(config, workdir) of a finished run with a teacher in a folder of its own, and that folder."""
    config, folder = finished_run
    teacher = shutil.copytree(folder / 'teacher', tmp_path / 'teacher')
    config = copy_with(config, teacher__checkpoint=str(teacher))
    train(config, tmp_path / 'run')
    return config, tmp_path / 'run', teacher


def test_a_teacher_is_known_by_its_fingerprint_wherever_it_lies(
    run_with_named_teacher, tmp_path, monkeypatch
):
    config, folder, teacher = run_with_named_teacher
    result = json.loads((folder / 'result.json').read_text())
    moved_config = copy_with(config, teacher__checkpoint=str(teacher.rename(tmp_path / 'moved')))
    monkeypatch.setattr(loop.Loop, 'finish', fail_if_trained)
    assert train(moved_config, folder) == result


def test_a_result_of_another_teacher_is_refused(run_with_named_teacher, tmp_path):
    config, folder, _ = run_with_named_teacher
    train(copy_with(config_lib.teacher_run(config), seed=5), tmp_path / 'other')
    for place in (str(tmp_path / 'other'), ''):
        with pytest.raises(UserError, match=r'holds a run with another teacher: teacher\.checkpoint \(/'):
            train(copy_with(config, teacher__checkpoint=place), folder)


def test_a_folder_of_runs_may_be_moved(small_config, tmp_path, monkeypatch):
    root = epath.Path(tmp_path / 'here')
    config = small_config(method='ld', **SMALL)
    result = cells.run_one(root, config)
    teacher = cells.teacher_folder(root, config)
    there = epath.Path((tmp_path / 'here').rename(tmp_path / 'there'))
    monkeypatch.setattr(loop.Loop, 'finish', fail_if_trained)
    assert cells.run_one(there, config) == result
    assert cells.read_cell(there, [config]).items() >= result.items()
    # Reading a finished run finds the teacher in its workdir.
    run = teachers.load_finished_with_teacher(cells.run_folder(there, config))
    assert run.config.teacher.checkpoint == str(there / teacher.relative_to(root))


@pytest.mark.long
def test_a_run_is_not_read_back_with_another_teacher(run_with_named_teacher, tmp_path):
    config, folder, teacher = run_with_named_teacher
    shutil.rmtree(teacher)
    train(copy_with(config_lib.teacher_run(config), seed=5), teacher)
    with pytest.raises(UserError, match=f'the teacher in {teacher} is not the one that taught {folder}'):
        teachers.load_finished_with_teacher(epath.Path(folder))


# --- Checkpoints of another run --------------------------------------------------------------------


def test_a_checkpoint_beyond_the_last_step_is_refused(copied_teacher):
    config, folder = copied_teacher
    shutil.copytree(folder / 'checkpoints' / '2', folder / 'checkpoints' / '8')
    for name in (None, 'result.json'):
        if name:
            (folder / name).unlink()
        with pytest.raises(
            UserError, match='has a checkpoint of step 8, which is beyond num_steps=2; delete it'
        ):
            train(config, folder)
    shutil.rmtree(folder / 'checkpoints' / '8')
    assert train(config, folder)['steps'] == 2


def test_a_checkpoint_under_another_name_is_refused(copied_teacher):
    config, folder = copied_teacher
    copy = shutil.copytree(folder / 'checkpoints' / '2', folder / 'checkpoints' / '6')
    with pytest.raises(UserError, match=f'{copy} is the checkpoint of step 2 under another name; delete it'):
        train(copy_with(config, num_steps=8), folder)
    shutil.rmtree(copy)
    assert train(copy_with(config, num_steps=8), folder)['steps'] == 8
