"""Trackers receive the values of metrics.jsonl; no run depends on them. Each is read in its own format."""

import importlib.util
import json
import struct
import sys
import types

import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.files import metric_log, trackers
from td_jax.training.run import train

LINES = [
    {'step': 2, 'loss': 0.5},
    {'step': 4, 'accuracy': 0.5, 'accuracy/seed_0': 1.0},
    {'step': 6, 'loss': 2},
]
HPARAMS = {'method': 'td', 'td.rounds': 3, 'dataset.path': '', 'model.hidden': [5, 3]}


INSTALLED = [name for name in trackers.TRACKERS if importlib.util.find_spec(name)]
BOTH = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in INSTALLED, reason=f'{tracker.package} is not installed (requirements-dev.txt)'
        ),
    )
    for name, tracker in trackers.TRACKERS.items()
]


@pytest.fixture
def isolate_trackers(monkeypatch, tmp_path):
    """Puts Weights & Biases offline and MLflow into files, without telemetry."""
    settings = {
        **trackers.ENVIRONMENT,
        'WANDB_MODE': 'offline',
        'WANDB_ERROR_REPORTING': 'false',
        'MLFLOW_TRACKING_URI': (tmp_path / 'mlruns').as_uri(),
        'MLFLOW_ALLOW_FILE_STORE': 'true',
        'MLFLOW_DISABLE_TELEMETRY': 'true',
    }
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    yield
    if 'wandb' in INSTALLED:
        # wandb reads the environment once.
        importlib.import_module('wandb').teardown()


def make_options(**projects):
    options = common.get_config().tracking
    options.update(projects)
    return options


def read_records(path):
    """The records of a file of Weights & Biases: a log of LevelDB with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, whole = path.read_bytes(), 7, b''
    assert content[:4] == b':W&B'
    while position + 7 <= len(content):
        in_block = 2**15 - position % 2**15
        if in_block < 7:
            position += in_block
        _, length, kind = struct.unpack_from('<IHB', content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b''


def read_runs_of_wandb(folder, project):
    """[(name, {(step, metric): value}, options, whether it failed)] of all files of one project."""
    import wandb

    # Ends its process, which may not have written everything yet.
    wandb.teardown()
    runs = {}
    for path in sorted(folder.rglob('offline-run-*/*.wandb')):
        run_record, values, options, failed = None, {}, {}, None
        for record in read_records(path):
            kind = record.WhichOneof('record_type')
            if kind == 'run':
                run_record = record.run
            changes = {'run': record.run.config.update, 'config': record.config.update}.get(kind, ())
            options |= {
                item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in changes
            }
            if kind == 'history':
                items = {
                    item.key or '.'.join(item.nested_key): item.value_json for item in record.history.item
                }
                values |= {
                    (record.history.step.num, key): json.loads(value)
                    for key, value in items.items()
                    if not key.startswith('_')
                }
            if kind == 'exit':
                failed = record.exit.exit_code != 0
        if run_record.project == project:
            # A continued run has several files.
            name, earlier, earlier_options, _ = runs.get(
                run_record.run_id, (run_record.display_name, {}, {}, None)
            )
            assert not earlier.keys() & values.keys()
            options.pop('_wandb', None)
            runs[run_record.run_id] = name, earlier | values, earlier_options | options, failed
    return list(runs.values())


def read_runs_of_mlflow(folder, project):
    import mlflow

    client, runs = mlflow.MlflowClient(), []
    experiment = client.get_experiment_by_name(project)
    for run in client.search_runs([experiment.experiment_id]):
        history = [
            value for key in run.data.metrics for value in client.get_metric_history(run.info.run_id, key)
        ]
        values = {(value.step, value.key.replace('.', '/')): value.value for value in history}
        assert len(values) == len(history)
        assert run.info.status in ('FINISHED', 'FAILED')
        runs.append((run.info.run_name, values, run.data.params, run.info.status == 'FAILED'))
    return runs


RUNS = {'wandb': read_runs_of_wandb, 'mlflow': read_runs_of_mlflow}


def make_values(lines):
    return {(line['step'], name): value for line in lines for name, value in line.items() if name != 'step'}


def convert_to_stored(name, options):
    return {key: str(value) for key, value in options.items()} if name == 'mlflow' else options


def write_lines(log, lines):
    for line in lines:
        log.write(line['step'], {name: value for name, value in line.items() if name != 'step'})


@pytest.mark.usefixtures('isolate_trackers')
@pytest.mark.parametrize('name', BOTH)
def test_a_tracker_has_the_metrics_and_the_options_of_a_run(tmp_path, capfd, name):
    workdir = epath.Path(tmp_path / 'runs' / 'digits')
    workdir.mkdir(parents=True)
    options = make_options(**{name: 'one'})
    with pytest.raises(ZeroDivisionError), metric_log.open_log(workdir, [], options, HPARAMS) as log:
        write_lines(log, LINES[:1])
        raise ZeroDivisionError
    expected = 'runs/digits', make_values(LINES[:1]), convert_to_stored(name, HPARAMS), True
    assert RUNS[name](tmp_path, 'one') == [expected]

    # The tracker's run is continued, at most with other options.
    with metric_log.open_log(workdir, LINES[:1], options, {'method': 'ld'}) as log:
        write_lines(log, LINES[1:])
    expected = 'runs/digits', make_values(LINES), convert_to_stored(name, HPARAMS), False
    assert RUNS[name](tmp_path, 'one') == [expected]

    # Another project gets all lines, as does a tracker that was off before.
    with metric_log.open_log(workdir, LINES[:2], make_options(**{name: 'two'}), HPARAMS) as log:
        write_lines(log, LINES[2:])
    assert RUNS[name](tmp_path, 'two') == [expected]
    assert len(RUNS[name](tmp_path, 'one')) == 1
    # One line per start.
    out, err = capfd.readouterr()
    assert out == ''
    assert [line.split(':')[0] for line in err.splitlines()] == [trackers.TRACKERS[name].title] * 3


@pytest.mark.usefixtures('isolate_trackers')
@pytest.mark.parametrize('name', BOTH)
def test_a_run_that_starts_anew_is_another_run_of_its_tracker(tmp_path, name):
    for _ in range(2):
        with metric_log.open_log(epath.Path(tmp_path), [], make_options(**{name: 'one'}), {}) as log:
            write_lines(log, LINES)
    assert [run[1] for run in RUNS[name](tmp_path, 'one')] == [make_values(LINES)] * 2


@pytest.mark.usefixtures('isolate_trackers')
@pytest.mark.parametrize('name', BOTH)
def test_a_tracker_that_cannot_start_is_left_out(tmp_path, monkeypatch, capfd, name):
    monkeypatch.setenv('WANDB_MODE', 'online')
    monkeypatch.delenv('WANDB_API_KEY', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'{tmp_path.as_uri()}/mlruns')
    monkeypatch.delenv('MLFLOW_ALLOW_FILE_STORE')
    with metric_log.open_log(epath.Path(tmp_path), [], make_options(**{name: 'one'}), HPARAMS) as log:
        write_lines(log, LINES)
    assert metric_log.read(tmp_path) == LINES
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f'warning: {trackers.TRACKERS[name].title} failed (')
    assert line.endswith('; the run continues without it.')
    assert {'wandb': 'no API key: run `wandb login`', 'mlflow': 'The filesystem tracking backend'}[
        name
    ] in line
    assert not (tmp_path / trackers.FILE).exists()


@pytest.mark.usefixtures('isolate_trackers')
@pytest.mark.parametrize('name', BOTH[1:])
def test_a_tracker_that_fails_on_the_way_is_left_out(tmp_path, capfd, name):
    with metric_log.open_log(epath.Path(tmp_path), [], make_options(**{name: 'one'}), HPARAMS) as log:
        write_lines(log, LINES[:1])
        (tmp_path / 'mlruns').rename(tmp_path / 'gone')
        write_lines(log, LINES[1:])
        log.flush()
    assert metric_log.read(tmp_path) == LINES
    _, line = capfd.readouterr().err.splitlines()
    assert line.startswith('warning: MLflow failed (')


def test_a_writer_that_failed_is_called_no_more(capfd):
    from td_jax.files.tracker_writer import TrackerWriter

    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise OSError('no\nnetwork')

    writer = TrackerWriter('Somebody', trackers.Connection('id', 'here', fail, fail, fail))
    writer.write_scalars(1, {'loss': 2.0})
    writer.write_scalars(2, {'loss': 2.0})
    writer.flush()
    writer.close()
    assert calls == [(1, {'loss': 2.0})]
    assert capfd.readouterr().err == 'warning: Somebody failed (no network); the run continues without it.\n'


@pytest.mark.parametrize('name', trackers.TRACKERS)
@pytest.mark.parametrize('module', [None, types.ModuleType('empty')], ids=['missing', 'a folder of its name'])
def test_a_missing_package_is_refused_before_a_run(small_config, tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, name, module)
    config = small_config(**{f'tracking__{name}': 'mine'})
    tracker = trackers.TRACKERS[name]
    with pytest.raises(UserError) as error:
        train(config, epath.Path(tmp_path / 'run'))
    message = str(error.value)
    assert message.startswith(f'tracking.{name} is mine, but {tracker.title} cannot be imported (')
    assert message.endswith(f": pip install {tracker.package}, or set tracking.{name}=''.")
    assert not (tmp_path / 'run').exists()


@pytest.mark.usefixtures('isolate_trackers')
@pytest.mark.skipif(not INSTALLED, reason='no tracker is installed (requirements-dev.txt)')
def test_a_run_and_its_teacher_are_tracked_and_are_the_same_run(small_config, tmp_path):
    run, config = tmp_path / 'run', small_config(method='ld')
    digest = config_lib.digest(config)
    config.tracking.update(dict.fromkeys(INSTALLED, 'mine'))
    result = train(config, epath.Path(run))
    assert config_lib.digest(config) == digest
    folders = {f'{tmp_path.name}/run': run, 'run/teacher': run / 'teacher'}
    methods = {run: 'ld', run / 'teacher': 'supervised'}
    for name in INSTALLED:
        by_name = {tracked[0]: tracked for tracked in RUNS[name](tmp_path, 'mine')}
        assert by_name.keys() == folders.keys()
        for run_name, folder in folders.items():
            _, values, options, failed = by_name[run_name]
            assert values == make_values(metric_log.read(folder))
            assert options['method'] == methods[folder]
            assert not failed
    # Without trackers it is the same run, which is finished.
    config.tracking.update(dict.fromkeys(INSTALLED, ''))
    assert train(config, epath.Path(run)) == result
