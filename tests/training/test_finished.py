"""Reading a finished run on any devices, whatever devices it was trained on."""

import json
import os

import jax
import jax.export
import numpy as np
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.training import dispatch, finished, teachers, train_step
from td_jax.training.run import train
from tests import forked


def run_on_devices(count, script, *arguments):
    """Runs a script on `count` devices; returns its output."""
    process = forked.run(
        ['-c', script, *map(str, arguments)],
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(count), 'JAX_PLATFORMS': 'cpu'},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


TRAIN = """
import json, pathlib, sys
from etils import epath
from td_jax import config as config_lib
from td_jax.training.run import train
config = config_lib.from_json(json.loads(pathlib.Path(sys.argv[1]).read_text()))
train(config, epath.Path(sys.argv[2]))
"""
EXPORT = """
import sys
from td_jax import export
sys.argv[1:] = [f'--workdir={sys.argv[1]}', '--format=stablehlo', f'--output={sys.argv[2]}']
export.main()
"""


@pytest.mark.long
def test_a_run_that_was_cut_over_devices_is_read_on_one(small_config, tmp_path):
    config = small_config(model__hidden=(6, 4), teacher__model__hidden=(8, 4), mesh__fsdp=2)
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    run_on_devices(2, TRAIN, tmp_path / 'config.json', tmp_path / 'run')
    assert len(jax.devices()) == 1
    run = teachers.load_finished_with_teacher(epath.Path(tmp_path / 'run'), 1, with_examples=True)
    kernel = run.params[train_step.STUDENT]['hidden_layers_0']['kernel']
    assert kernel.shape == (64, 6)
    assert run.teacher.params['hidden_layers_0']['kernel'].shape == (64, 8)
    # The accuracy of the loaded parameters, in NumPy, is the one that the run measured on two devices.
    x, params = run.source.evaluation['image'], run.params[train_step.STUDENT]
    for name in ('hidden_layers_0', 'hidden_layers_1'):
        x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
    logits = x @ params['output_layer']['kernel'] + params['output_layer']['bias']
    accuracy = np.mean(logits.argmax(-1) == run.source.evaluation['labels'])
    values = finished.read_result(epath.Path(tmp_path / 'run'))['values']
    np.testing.assert_allclose(accuracy, values[1], atol=1e-6)


@pytest.mark.long
def test_a_run_is_exported_on_more_devices_than_divide_its_batch(small_config, tmp_path):
    config = small_config(method='supervised', batch_size=9)
    train(config, epath.Path(tmp_path / 'run'))
    run_on_devices(4, EXPORT, tmp_path / 'run', tmp_path / 'student')
    program = jax.export.deserialize(bytearray((tmp_path / 'student' / 'student.stablehlo').read_bytes()))
    run = finished.load(epath.Path(tmp_path / 'run'))
    grey = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    params = run.params[train_step.STUDENT]
    inputs = {'image': grey.reshape(7, 64) / np.float32(255)}
    expected = run.student.head(
        params, run.student.upper(params, run.student.lower(params, inputs, None), None)
    )
    logits = program.call({'image': np.repeat(grey, 3, axis=-1)})['logits']
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_a_finished_run_is_read_without_a_mesh_a_step_or_its_teacher(small_config, tmp_path, monkeypatch):
    folder = epath.Path(tmp_path / 'run')
    train(small_config(num_steps=2, teacher__num_steps=1), folder)

    def fail_if_called(*arguments, **named):
        raise AssertionError('reading a finished run needs none of this')

    monkeypatch.setattr(sharding, 'make_mesh', fail_if_called)
    monkeypatch.setattr(train_step, 'make_step', fail_if_called)
    monkeypatch.setattr(dispatch, 'make_dispatch', fail_if_called)
    monkeypatch.setattr(teachers, 'load', fail_if_called)
    run = finished.load(folder)
    assert run.teacher is None
    assert set(run.params[train_step.COMMUNICATION]) == {
        'student_encoder',
        'student_decoder',
        'teacher_encoder',
        'teacher_decoder',
    }


RESULT = {**dict.fromkeys(finished.RESULT_KEYS), 'steps': 3, 'seeds': [4, 5]}
VALUES = np.array([[0.25, 4, 1], [1, 0, 2.25]], np.float32)


def write_run(folder, values=VALUES, units=None, **changes):
    """Writes the errors and the result of a run, with some keys of the result changed afterwards."""
    finished.write_errors(folder, values, units, RESULT)
    workdir.write(folder / workdir.RESULT, json.dumps(RESULT | changes))


@pytest.mark.parametrize(('units', 'expected'), [(None, [0, 1, 2]), (np.array([7, 3, 7]), [7, 3, 7])])
def test_errors_are_read_as_they_were_written(units, expected, tmp_path):
    folder = epath.Path(tmp_path)
    write_run(folder, units=units)
    errors = finished.read_errors(folder)
    np.testing.assert_array_equal(errors.values, VALUES)
    assert errors.values.dtype == np.float32
    np.testing.assert_array_equal(errors.units, expected)


def test_a_run_without_errors_has_none(tmp_path):
    folder = epath.Path(tmp_path)
    assert finished.read_errors(folder) is None
    workdir.write(folder / workdir.RESULT, json.dumps(RESULT))
    assert finished.read_errors(folder) is None


@pytest.mark.parametrize(
    'run',
    [
        {'steps': 9},
        {'seeds': [4, 6]},
        {'values': VALUES[:1]},
        {'units': np.arange(2)},
        {'values': np.array([[np.nan, 1, 2], [1, 2, 3]], np.float32)},
        {'values': np.array([['a', 'b', 'c']] * 2)},
    ],
)
def test_errors_that_are_not_of_the_result_are_refused(run, tmp_path):
    folder = epath.Path(tmp_path)
    write_run(folder, **run)
    with pytest.raises(
        UserError, match=r'errors\.npz is damaged or does not belong to the result\.json'
    ) as error_info:
        finished.read_errors(folder)
    assert '\n' not in str(error_info.value)
