"""A run from its config to its workdir: files, continuation and refusals."""

import json
import shutil
import socket

import flax
import jax
import numpy as np
import pytest

import td_jax
from td_jax import config
from td_jax.configs import movielens as movielens_config
from td_jax.data import SOURCES, movielens
from td_jax.devices import fingerprint, small_arrays
from td_jax.errors import Diverged, Missing, UserError
from td_jax.files import checkpoints, metric_log, workdir
from td_jax.training import evaluation
from td_jax.training import finished as finished_runs
from td_jax.training import run as run_lib
from td_jax.training.run import describe, train


@pytest.fixture
def copied_run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


@pytest.fixture
def copied_teacher(finished, td_config, tmp_path):
    """(config, workdir) of a finished run without a teacher: 4 steps, a checkpoint every 2."""
    return config.teacher_run(td_config), shutil.copytree(finished / 'teacher', tmp_path / 'run')


def read_files(folder):
    """{path: content} of everything under a folder but the locks."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and path.name != '.lock'
    }


@pytest.fixture(scope='session')
def restore(read_back):
    """A function (workdir) -> (step, arrays, metadata) of a run's newest checkpoint."""
    return lambda folder: read_back(folder / 'checkpoints')


def copy_with(original, **changes):
    """A copy of a config with some other values, keys as in small_config."""
    other = original.copy_and_resolve_references()
    other.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return other


# --- What is in a workdir --------------------------------------------------------------------------


def test_a_workdir_holds_these_files_and_no_other(finished):
    for folder, more in ((finished, {'teacher'}), (finished / 'teacher', set())):
        names = {path.name for path in folder.iterdir()}
        events = {name for name in names if name.startswith('events.out.tfevents.')}
        assert len(events) == 1
        others = {'.lock', 'checkpoints', 'config.json', 'metrics.jsonl', 'result.json', 'errors.npz'}
        assert names == events | others | more | {'data.json'}


def test_config_json_is_the_resolved_config(finished, td_config):
    stored = json.loads((finished / 'config.json').read_text())
    # In JSON, pairs are lists.
    assert stored == json.loads(json.dumps(td_config.to_dict()))
    assert stored['td']['noise_std'] == 0.1


METRICS = {
    'supervised': {'task'},
    'hybrid': {'task', 'logits', 'feature'},
    'td': {'task', 'message', 'state', 'interact'},
}


@pytest.mark.parametrize(
    'method', [m if m in ('td', 'ld') else pytest.param(m, marks=pytest.mark.long) for m in METRICS]
)
def test_metrics_have_one_line_an_interval_with_every_term(method, td_config, finished, tmp_path):
    folder = finished
    if method != 'td':
        folder = tmp_path
        train(copy_with(td_config, method=method, teacher__checkpoint=str(finished / 'teacher')), folder)
    *trained, last = metric_log.read(folder)
    if method == 'hybrid':
        assert trained.pop(0).keys() == {'step', 'probe_train_accuracy'}
    assert [line['step'] for line in trained] == [2, 4, 6]
    terms = METRICS[method] | {'loss', 'gradient_norm', 'learning_rate'}
    for line in trained:
        assert line.keys() == {'step', 'examples_per_second'} | {f'train_{term}' for term in terms}
        assert line['examples_per_second'] > 0
        weighted = sum(line[f'train_{term}'] for term in METRICS[method])
        np.testing.assert_allclose(line['train_loss'], weighted, rtol=1e-5)
        np.testing.assert_allclose(line['train_learning_rate'], 1e-3, rtol=1e-6)
    result = json.loads((folder / 'result.json').read_text())
    by_seed = {f'test_accuracy/seed_{i}': value for i, value in enumerate(result['values'])}
    assert last == {'step': 6, 'test_accuracy': result['mean'], **by_seed}


def test_the_learning_rate_that_is_logged_is_the_mean_of_those_used(small_config, tmp_path):
    settings = {'optimizer__warmup_steps': 4, 'optimizer__learning_rate': 0.4}
    train(small_config(method='supervised', **settings), tmp_path)
    rates = [line['train_learning_rate'] for line in metric_log.read(tmp_path)[:-1]]
    # 0, 0.1, 0.2, 0.3 during the warm-up, two steps per line.
    np.testing.assert_allclose(rates, [0.05, 0.25, 0.4], rtol=1e-5)


def test_events_hold_what_metrics_jsonl_holds(finished):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(finished), size_guidance={'tensors': 0}).Reload()
    values = {
        (event.step, tag): float(tensor_util.make_ndarray(event.tensor_proto))
        for tag in events.Tags()['tensors']
        for event in events.Tensors(tag)
    }
    expected = {
        (line['step'], name): float(np.float32(value))
        for line in metric_log.read(finished)
        for name, value in line.items()
        if name != 'step'
    }
    assert values == expected


def test_result_json_says_what_was_measured(finished, td_config, restore):
    result = json.loads((finished / 'result.json').read_text())
    assert tuple(result) == (*finished_runs.RESULT_KEYS, 'groups')
    values = result.pop('values')
    assert len(values) == 2
    assert result.pop('teacher_fingerprint') == restore(finished)[2]['teacher']
    assert result == {
        'method': 'td',
        'dataset': 'digits 5, 6, 7, 8, 9',
        'metric': 'accuracy',
        'split': 'test',
        'mean': pytest.approx(np.mean(values)),
        'stderr': pytest.approx(abs(values[0] - values[1]) / 2),
        'steps': 6,
        'seeds': [0, 1],
        'teacher': None,  # it classifies other digits
        'versions': {
            'jax': jax.__version__,
            'flax': flax.__version__,
            'td_jax': td_jax.__version__,
        },
        'groups': {},
    }
    teacher = json.loads((finished / 'teacher' / 'result.json').read_text())
    assert (teacher['method'], teacher['dataset'], teacher['steps'], teacher['seeds'], teacher['stderr']) == (
        'supervised',
        'digits 0, 1, 2, 3, 4',
        4,
        [0],
        None,
    )


def test_values_are_those_of_the_saved_students(finished, td_config, restore):
    """The accuracy of the saved parameters, computed in NumPy."""
    _, arrays, _ = restore(finished)
    source = SOURCES['digits'](td_config.dataset, td_config.dataset)
    values = json.loads((finished / 'result.json').read_text())['values']
    for seed, value in enumerate(values):
        x = source.evaluation['image']
        for name in ('hidden_layers_0', 'hidden_layers_1', 'output_layer'):
            kernel, bias = (arrays[f'params/student/{name}/{part}'][seed] for part in ('kernel', 'bias'))
            x = x @ kernel + bias
            x = x if name == 'output_layer' else np.maximum(x, 0)
        is_right = np.argmax(x, axis=1) == source.evaluation['labels']
        np.testing.assert_allclose(value, np.mean(is_right), rtol=1e-6)
        errors = finished_runs.read_errors(finished)
        np.testing.assert_array_equal(errors.values[seed], is_right)
        # Each image is a unit of its own.
        np.testing.assert_array_equal(errors.units, np.arange(len(is_right)))


def test_a_teacher_with_the_same_labels_has_its_score(small_config, tmp_path):
    same = {'teacher__dataset__classes': (5, 6, 7, 8, 9), 'teacher__labels': 'shared'}
    result = train(small_config(method='ld', **same), tmp_path)
    teacher = json.loads((tmp_path / 'teacher' / 'result.json').read_text())
    # Both are measured on the same test images.
    assert result['teacher'] == pytest.approx(teacher['mean'])
    assert f'; teacher {teacher["mean"]:.4f}' in describe(result)


# --- The teacher -----------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_student_and_the_modules_and_not_the_teacher(finished, restore):
    step, arrays, metadata = restore(finished)
    assert step == arrays['step'][0] == 6
    params = {name for name in arrays if name.startswith('params/')}
    assert {name.split('/')[1] for name in params} == {'student', 'communication'}
    assert {name.split('/')[2] for name in params if name.startswith('params/communication/')} == {
        'student_encoder',
        'student_decoder',
        'teacher_encoder',
        'teacher_decoder',
    }
    assert {name.split('/')[0] for name in arrays} == {'step', 'params', 'opt_state'}
    # Adam has two moments of every parameter.
    for name in params:
        group, rest = name.removeprefix('params/').split('/', 1)
        assert len([n for n in arrays if n.startswith(f'opt_state/{group}/') and n.endswith(rest)]) == 2
    _, teacher, _ = restore(finished / 'teacher')
    kernels = {array.shape[1:] for name, array in teacher.items() if name.endswith('kernel')}
    assert kernels == {(64, 7), (7, 11), (11, 5)}
    assert not kernels & {array.shape[1:] for array in arrays.values()}
    assert set(metadata) == {'teacher', 'fingerprints'}


def test_the_fingerprint_in_a_checkpoint_is_that_of_the_teacher_on_disk(finished, restore):
    _, arrays, _ = restore(finished / 'teacher')
    prefix = 'params/student/'
    teacher = {name.removeprefix(prefix): a[0] for name, a in arrays.items() if name.startswith(prefix)}
    tree = flax.traverse_util.unflatten_dict(teacher, sep='/')
    assert restore(finished)[2]['teacher'] == fingerprint.of(tree)


def test_the_teacher_is_a_supervised_run_of_its_own(finished, td_config, tmp_path, outcome):
    alone = config.teacher_run(td_config)
    assert (alone.method, alone.num_seeds, alone.num_steps) == ('supervised', 1, 4)
    assert alone.model.hidden == (7, 11)
    assert alone.dataset.classes == (0, 1, 2, 3, 4)
    train(alone, tmp_path / 'alone')
    assert outcome(tmp_path / 'alone') == outcome(finished / 'teacher')


def test_a_teacher_of_another_workdir_gives_the_same_and_stays_as_it_is(
    finished, td_config, tmp_path, outcome
):
    teacher = shutil.copytree(finished / 'teacher', tmp_path / 'teacher')
    before = read_files(teacher)
    other = copy_with(td_config, teacher__checkpoint=str(teacher))
    train(other, tmp_path / 'run')
    assert read_files(teacher) == before
    assert not (tmp_path / 'run' / 'teacher').exists()
    ours, theirs = outcome(tmp_path / 'run'), outcome(finished)
    assert ours.pop('config')['teacher'].pop('checkpoint') == str(teacher)
    del theirs['config']
    assert ours == theirs


@pytest.mark.long
def test_a_teacher_of_several_seeds_teaches_with_its_first(finished, td_config, tmp_path, restore):
    several = config.teacher_run(td_config)
    several.num_seeds = 3
    train(several, tmp_path / 'teacher')
    _, arrays, _ = restore(tmp_path / 'teacher')
    train(copy_with(td_config, teacher__checkpoint=str(tmp_path / 'teacher')), tmp_path / 'run')
    first = {
        name.removeprefix('params/student/'): array[0]
        for name, array in arrays.items()
        if name.startswith('params/student/')
    }
    tree = flax.traverse_util.unflatten_dict(first, sep='/')
    assert restore(tmp_path / 'run')[2]['teacher'] == fingerprint.of(tree)


def remove_result(folder):
    (folder / 'result.json').unlink()


def lengthen_config(folder):
    stored = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**stored, 'num_steps': 9}))


def remove_checkpoints(folder):
    shutil.rmtree(folder / 'checkpoints')


def remove_run(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ('damage', 'changes', 'message'),
    [
        (remove_result, {}, r'teacher\.checkpoint .*/teacher is not the workdir of a finished run: .*result'),
        (remove_run, {}, r'teacher\.checkpoint .*/teacher is not the workdir of a finished run'),
        (lengthen_config, {}, r'teacher\.checkpoint .*/teacher is not finished: 4 of 9 steps'),
        (remove_checkpoints, {}, 'has no readable checkpoint of its last step, 4'),
        (None, {'teacher__model__hidden': (7, 12)}, r'model\.hidden \(\[7, 11\] there, \[7, 12\] here\)'),
        (
            None,
            {'teacher__dataset__classes': (0, 1)},
            r'dataset\.classes \(\[0, 1, 2, 3, 4\] there',
        ),
        (None, {'dataset__split': 'validation'}, r'dataset\.split \(test there, validation here\)'),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(damage, changes, message, finished, td_config, tmp_path):
    teacher = shutil.copytree(finished / 'teacher', tmp_path / 'teacher')
    if damage:
        damage(teacher)
    before = read_files(tmp_path)
    assert_refused(
        copy_with(td_config, teacher__checkpoint=str(teacher), **changes), tmp_path / 'run', message
    )
    assert read_files(tmp_path) == before


def test_a_student_is_no_teacher(finished, td_config, tmp_path):
    assert_refused(
        copy_with(td_config, teacher__checkpoint=str(finished)),
        tmp_path / 'run',
        r'method \(td there, supervised here\)',
    )


@pytest.mark.long
def test_a_teacher_that_changed_since_is_refused(finished, td_config, tmp_path):
    teacher = shutil.copytree(finished / 'teacher', tmp_path / 'teacher')
    config_with_teacher = copy_with(td_config, teacher__checkpoint=str(teacher))
    train(config_with_teacher, tmp_path / 'run')
    before = read_files(tmp_path / 'run')
    shutil.rmtree(teacher)
    train(copy_with(config.teacher_run(td_config), seed=5), teacher)
    with pytest.raises(UserError, match='was trained with another teacher than the one at hand now'):
        train(copy_with(config_with_teacher, num_steps=8), tmp_path / 'run')
    assert read_files(tmp_path / 'run') == before


# --- Calling train again ---------------------------------------------------------------------------


def test_a_finished_run_gives_its_result_and_is_left_alone(copied_run, td_config):
    before = read_files(copied_run)
    times = {path: path.stat().st_mtime_ns for path in copied_run.rglob('*')}
    result = train(td_config, copied_run)
    assert result == json.loads((copied_run / 'result.json').read_text())
    assert read_files(copied_run) == before
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob('*')} == times


def test_a_run_that_was_finished_before_errors_were_kept_is_finished(copied_run, td_config, monkeypatch):
    (copied_run / 'errors.npz').unlink()
    result = json.loads((copied_run / 'result.json').read_text())
    del result['groups']
    (copied_run / 'result.json').write_text(json.dumps(result))
    before = read_files(copied_run)
    assert train(td_config, copied_run) == result
    assert read_files(copied_run) == before
    assert finished_runs.read_errors(copied_run) is None
    assert describe(result).startswith('td on digits')


def test_a_finished_run_needs_neither_its_data_nor_its_teacher(copied_run, td_config, monkeypatch, capsys):
    shutil.rmtree(copied_run / 'teacher')

    def fail_to_load(*arguments):
        raise Missing('they are gone')

    monkeypatch.setitem(SOURCES, 'digits', fail_to_load)
    assert train(td_config, copied_run)['steps'] == 6
    warning = f'{copied_run} is finished; whether its data have changed is not known: they are gone\n'
    assert capsys.readouterr().err == warning


@pytest.mark.long
def test_more_steps_train_the_difference(copied_run, td_config, tmp_path, outcome, capsys):
    longer = copy_with(td_config, num_steps=11)
    train(longer, copied_run)
    assert 'continues at step 6 of 11' in capsys.readouterr().err
    shutil.copytree(copied_run / 'teacher', tmp_path / 'at_once' / 'teacher')
    train(longer, tmp_path / 'at_once')
    assert 'continues' not in capsys.readouterr().err
    extended, at_once = outcome(copied_run), outcome(tmp_path / 'at_once')
    # The evaluation at the end of the shorter run stays in the log.
    (earlier_evaluation,) = (
        line for line in extended['metrics'] if line['step'] == 6 and 'test_accuracy' in line
    )
    extended['metrics'].remove(earlier_evaluation)
    assert extended == at_once
    assert extended['result']['steps'] == extended['config']['num_steps'] == extended['step'] == 11


def test_fewer_steps_are_refused(copied_run, td_config):
    before = read_files(copied_run)
    with pytest.raises(UserError, match='holds a run of 6 steps, which is more than num_steps=5'):
        train(copy_with(td_config, num_steps=5), copied_run)
    assert read_files(copied_run) == before


@pytest.mark.parametrize(
    ('changes', 'phrases'),
    [
        ({'optimizer__learning_rate': 0.5}, ['optimizer.learning_rate (0.001 there, 0.5 here)']),
        ({'method': 'fd', 'seed': 3}, ['method (td there, fd here)', 'seed (0 there, 3 here)']),
        ({'teacher__num_steps': 5}, ['teacher.num_steps (4 there, 5 here)']),
        ({'num_steps': 9, 'batch_size': 7}, ['batch_size (9 there, 7 here)']),
        ({'num_steps': 3, 'model__hidden': (5, 4)}, ['model.hidden ([5, 3] there, [5, 4] here)']),
        ({'td__weights__logits': 0.5}, ['td.weights.logits (0.0 there, 0.5 here)']),
    ],
)
def test_any_other_change_is_refused_by_name(changes, phrases, copied_run, td_config):
    before = read_files(copied_run)
    with pytest.raises(UserError) as error_info:
        train(copy_with(td_config, **changes), copied_run)
    for part in phrases:
        assert part in str(error_info.value)
    assert str(error_info.value).count(' there, ') == len(phrases)
    assert read_files(copied_run) == before


def test_checkpoints_without_a_config_are_refused(copied_run, td_config):
    (copied_run / 'config.json').unlink()
    with pytest.raises(UserError, match=r'holds checkpoints but no config\.json'):
        train(td_config, copied_run)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('config.json', '{"seed": ', r'config\.json cannot be read'),
        ('config.json', '[]', r'config\.json does not hold a JSON object'),
        ('config.json', '{}', 'holds a run by another protocol'),
        ('result.json', 'null', r'result\.json does not hold a JSON object'),
        ('result.json', '{"method": "td"}', r'result\.json is damaged, dataset, metric, .*missing'),
    ],
)
def test_a_damaged_file_is_named(name, text, message, copied_run, td_config):
    (copied_run / name).write_text(text)
    with pytest.raises(UserError, match=message):
        train(td_config, copied_run)
    assert (copied_run / name).read_text() == text


def test_a_result_that_is_lost_is_made_again(copied_run, td_config, outcome, finished):
    (copied_run / 'result.json').unlink()
    train(td_config, copied_run)
    assert outcome(copied_run) == outcome(finished)


def cut_data(checkpoint):
    data = max(checkpoint.glob('state/d/*'), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-100])


def empty_checkpoint(checkpoint):
    for path in checkpoint.rglob('*'):
        if path.is_file():
            path.write_bytes(b'')


def remove_state(checkpoint):
    shutil.rmtree(checkpoint / 'state')


@pytest.mark.parametrize('damage', [cut_data, empty_checkpoint, remove_state])
def test_a_damaged_newest_checkpoint_is_skipped(damage, copied_teacher, outcome, finished, caplog, capsys):
    alone, folder = copied_teacher
    (folder / 'result.json').unlink()
    damage(folder / 'checkpoints' / '4')
    train(alone, folder)
    assert f'Checkpoint 4 in {folder / "checkpoints"} is skipped' in caplog.text
    err = capsys.readouterr().err
    assert 'continues at step 2 of 4' in err
    assert 'Traceback' not in err
    assert outcome(folder) == outcome(finished / 'teacher')
    # Step 4 was saved again, although a checkpoint of this step existed.
    assert (folder / 'checkpoints' / '4' / 'state').is_dir()


def test_without_a_readable_checkpoint_it_starts_again(copied_teacher, outcome, finished, caplog):
    alone, folder = copied_teacher
    (folder / 'result.json').unlink()
    for step in ('2', '4'):
        empty_checkpoint(folder / 'checkpoints' / step)
    train(alone, folder)
    assert all(f'Checkpoint {step} in' in caplog.text for step in (2, 4))
    assert outcome(folder) == outcome(finished / 'teacher')


def test_a_run_with_a_teacher_goes_on_from_the_checkpoint_before(copied_run, td_config, outcome, finished):
    (copied_run / 'result.json').unlink()
    empty_checkpoint(copied_run / 'checkpoints' / '6')
    train(td_config, copied_run)
    assert outcome(copied_run) == outcome(finished)


def test_a_workdir_has_one_process_at_a_time(td_config, tmp_path):
    with workdir.lock(tmp_path / 'run'), pytest.raises(UserError, match=f'{tmp_path / "run"} is in use'):
        train(td_config, tmp_path / 'run')
    assert read_files(tmp_path / 'run') == {}


def test_a_workdir_that_is_deep_and_relative(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    for path, expected in (('a/b/../c', 'a/c'), ('~/d/e', 'home/d/e')):
        train(small_config(method='supervised', num_steps=1), workdir.resolve(path))
        assert (tmp_path / expected / 'result.json').is_file()


def test_a_result_is_there_only_after_its_errors(copied_teacher, monkeypatch):
    """If the disk is full when errors are written, the run is not finished."""
    alone, folder = copied_teacher
    (folder / 'result.json').unlink()
    (folder / 'errors.npz').unlink()
    write = workdir.write_arrays

    def fail_for_space(path, arrays):
        raise UserError(f'{path} cannot be written: No space left on device.')

    monkeypatch.setattr(workdir, 'write_arrays', fail_for_space)
    with pytest.raises(UserError, match=r'errors\.npz cannot be written'):
        train(alone, folder)
    assert not (folder / 'result.json').exists()
    monkeypatch.setattr(workdir, 'write_arrays', write)
    train(alone, folder)
    assert finished_runs.read_errors(folder).values.shape[0] == 1


def test_groups_are_in_the_result_and_in_the_one_line(small_config, tmp_path, monkeypatch):
    load = SOURCES['digits']

    def load_with_groups(dataset, task):
        source = load(dataset, task)
        is_five = source.evaluation['labels'] == 0
        units = source.evaluation['labels'] + 10
        groups = {'known_users': is_five, 'unknown_users': ~is_five, 'nobody': is_five & False}
        return source._replace(units=units, groups=groups)

    monkeypatch.setitem(SOURCES, 'digits', load_with_groups)
    config = small_config(method='supervised')
    result = train(config, tmp_path)
    source, errors = load_with_groups(config.dataset, config.dataset), finished_runs.read_errors(tmp_path)
    np.testing.assert_array_equal(errors.units, source.units)
    assert result['groups'].keys() == {'known_users', 'unknown_users'}
    for name, group in result['groups'].items():
        is_in = source.groups[name]
        assert group['count'] == is_in.sum()
        np.testing.assert_allclose(group['values'], errors.values[:, is_in].mean(axis=1), rtol=1e-6)
    means = [np.mean(group['values']) for group in result['groups'].values()]
    counts = [group['count'] for group in result['groups'].values()]
    expected = (
        f'known users {means[0]:.4f} ({counts[0]} examples), unknown users {means[1]:.4f} ({counts[1]} ex'
    )
    assert f'; {expected}' in describe(result)
    del result['groups']['unknown_users']
    assert 'users' not in describe(result)


# --- When the evaluation split is read -------------------------------------------------------------


@pytest.fixture
def evaluations(monkeypatch):
    """A list to which each evaluation of a student appends the number of its examples."""
    counts = []
    build = evaluation.make_evaluation

    def make_counting_evaluation(model, source, *others):
        evaluate = build(model, source, *others)

        def run(params, examples=None):
            counts.append(len(source.evaluation['labels']))
            return evaluate(params, examples)

        return run

    monkeypatch.setattr(evaluation, 'make_evaluation', make_counting_evaluation)
    return counts


def test_the_test_split_is_read_once_and_at_the_end(small_config, tmp_path, evaluations, monkeypatch):
    settings = {'method': 'supervised', 'eval_every': 1, 'save_every': 3}
    at_save = []
    save = checkpoints.Checkpoints.save
    monkeypatch.setattr(
        checkpoints.Checkpoints,
        'save',
        lambda self, step, *rest: (at_save.append((step, len(evaluations))), save(self, step, *rest)),
    )
    train(small_config(**settings), tmp_path)
    assert at_save == [(3, 0), (6, 0)]
    assert len(evaluations) == 1
    lines = metric_log.read(tmp_path)
    assert ['test_accuracy' in line for line in lines] == [False] * (len(lines) - 1) + [True]
    assert not [name for line in lines for name in line if name.startswith('validation')]


def test_a_validation_run_has_a_curve(small_config, tmp_path, evaluations):
    settings = {'method': 'supervised', 'dataset__split': 'validation', 'eval_every': 2, 'num_steps': 7}
    result = train(small_config(**settings), tmp_path)
    scores = [line for line in metric_log.read(tmp_path) if 'validation_accuracy' in line]
    assert [line['step'] for line in scores] == [2, 4, 6, 7]
    assert len(evaluations) == 4
    assert scores[-1]['validation_accuracy'] == result['mean']
    assert result['split'] == 'validation'
    assert not [name for line in metric_log.read(tmp_path) for name in line if name.startswith('test')]


def test_a_line_ends_where_something_else_happens(small_config, tmp_path):
    """Each line is the mean over the steps since the line before, so no step is counted twice."""
    settings = {'method': 'supervised', 'save_every': 3, 'num_steps': 8, 'optimizer__warmup_steps': 7}
    train(small_config(log_every=4, **settings), tmp_path / 'cut')
    train(small_config(log_every=1, **settings), tmp_path / 'single')
    single = [line['train_loss'] for line in metric_log.read(tmp_path / 'single')[:-1]]
    *cut, _ = metric_log.read(tmp_path / 'cut')
    assert [line['step'] for line in cut] == [3, 4, 6, 8]
    expected = [np.mean(single[:3]), single[3], np.mean(single[4:6]), np.mean(single[6:])]
    np.testing.assert_allclose([line['train_loss'] for line in cut], expected, rtol=1e-5)


# --- Refusals --------------------------------------------------------------------------------------


def assert_refused(config, folder, message):
    """Asserts that the error has one line, and that the run wrote nothing."""
    with pytest.raises(UserError, match=message) as error_info:
        train(config, folder)
    assert len(str(error_info.value).splitlines()) == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'method': 'tdd'}, "method 'tdd' is not known. Did you mean td.*Known: supervised, ld, fd, fitnet"),
        ({'dataset__name': 'digit'}, "dataset.name 'digit' is not known.*digits.*movielens"),
        ({'model__name': 'cnn'}, r"model\.name 'cnn' is not known.*mlp"),
        ({'dataset__split': 'train'}, r"dataset\.split 'train' is not known.*validation, test"),
        ({'optimizer__learning_rate': -0.1}, r'^optimizer\.learning_rate is -0\.1; it must be more than 0'),
        ({'optimizer__learning_rate': float('nan')}, r'^optimizer\.learning_rate is nan'),
        ({'optimizer__learning_rate': float('inf')}, r'^optimizer\.learning_rate is inf'),
        ({'teacher__optimizer__learning_rate': 0.0}, r'^teacher\.optimizer\.learning_rate is 0\.0'),
        ({'optimizer__warmup_steps': 6}, r'^optimizer\.warmup_steps is 6, but training has 6 steps'),
        ({'teacher__optimizer__warmup_steps': 9}, r'^teacher\.optimizer\.warmup_steps is 9.*4 steps'),
        ({'num_steps': 0}, '^num_steps is 0; it must be more than 0'),
        ({'td__weights__state': -1.0}, r'^td\.weights\.state is -1\.0; it must be 0 or more'),
        ({'model__hidden': (5, 0)}, r'^model\.hidden is \(5, 0\)'),
        ({'batch_size': 51}, '^batch_size is 51, but digits 5, 6, 7, 8, 9 has 50 training examples'),
        ({'dataset__examples_per_class': 9999}, r'^dataset\.examples_per_class is 9999; only \d+ training'),
        ({'dataset__classes': (5, 10)}, r'^dataset\.classes is \(5, 10\)'),
        ({'teacher__dataset__classes': (5, 5)}, r'^teacher\.dataset\.classes is \(5, 5\)'),
        ({'teacher__model__split': 3}, r'^teacher\.model\.split'),
        ({'model__split': 3}, r'^model\.split'),
        (
            {'method': 'ld', 'teacher__labels': 'shared'},
            r'the teacher predicts 5 labels \(0, 1, 2, \.\.\.\) and the student 5 \(5, 6, 7, \.\.\.\): '
            'set teacher.labels to probe or auxiliary',
        ),
        ({'td__weights__logits': 1.0, 'teacher__labels': 'shared'}, r'set teacher\.labels to probe or'),
        ({'td__ramp_up': (3, 3)}, r'^td\.ramp_up takes 6 steps of num_steps=6'),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_written(changes, message, small_config, tmp_path):
    assert_refused(small_config(**changes), tmp_path / 'run', message)


def test_a_small_batch_of_the_teacher_is_refused(small_config, tmp_path):
    changes = {
        'dataset__examples_per_class': 100,
        'batch_size': 100,
        'teacher__dataset__examples_per_class': 10,
    }
    assert_refused(
        small_config(**changes), tmp_path / 'run', r'^batch_size is 100, but digits 0, 1, 2, 3, 4 has 50'
    )


def test_unknown_and_missing_keys_are_refused(small_config, tmp_path):
    bad_config = small_config()
    bad_config.optimizer.learning_rat = 0.1
    assert_refused(
        bad_config,
        tmp_path / 'run',
        r'^optimizer\.learning_rat is not a key.*mean optimizer\.learning_rate\?',
    )
    bad_config = small_config()
    del bad_config.td.rounds
    assert_refused(bad_config, tmp_path / 'run', r'^td\.rounds is missing')


def make_movielens_config(**changes):
    config = movielens_config.get_config()
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config


@pytest.mark.usefixtures('movielens_data')
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dataset__genre': 'Dramma'}, r"^dataset\.genre 'Dramma' is not known.*Action.*Western"),
        ({'teacher__dataset__genre': 'drama'}, r"^teacher\.dataset\.genre 'drama' is not known.*Drama"),
        ({'dataset__genre': 'IMAX'}, r"^dataset\.genre 'IMAX' has no ratings in the training part"),
        ({'batch_size': 40_000}, '^batch_size is 40000, but movielens/100k-ratings Drama has 35771'),
        ({'method': 'ld', 'logits__distance': 'kl'}, r'^logits\.distance kl .* set logits\.distance to l2'),
        ({'method': 'ld', 'teacher__labels': 'probe'}, r'^teacher\.labels probe learns classes'),
        ({'model__embeddings__usr': 5}, r'usr'),
    ],
)
def test_a_bad_value_for_movielens_is_refused(changes, message, tmp_path):
    assert_refused(make_movielens_config(**changes), tmp_path / 'run', message)


def test_data_that_is_missing_is_refused(monkeypatch, tmp_path):
    def fail_to_resolve(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', fail_to_resolve)
    # TFDS reads TFDS_DATA_DIR once, when it is imported.
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path / 'data'))
    movielens.read_ratings.cache_clear()
    message = r'not prepared under .*/data .*`tfds build movielens/100k-ratings`.*TFDS_DATA_DIR'
    assert_refused(make_movielens_config(), tmp_path / 'run', message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', ['file', 'file/run', 'file/deep/run'])
def test_a_workdir_that_cannot_be_made_is_refused(path, small_config, tmp_path):
    (tmp_path / 'file').write_text('here already')
    with pytest.raises(UserError, match=f'workdir {tmp_path / path} cannot be written') as error_info:
        train(small_config(), tmp_path / path)
    assert len(str(error_info.value).splitlines()) == 1
    assert read_files(tmp_path) == {(tmp_path / 'file').relative_to(tmp_path): b'here already'}


# --- When training goes wrong ----------------------------------------------------------------------


# The learning rate is 0 in the first step; at the third loss the parameters are near 1e30.
EXPLODING = {
    'optimizer__name': 'sgd',
    'optimizer__learning_rate': 1e30,
    'optimizer__warmup_steps': 2,
    'save_every': 1,
}


def test_a_loss_that_is_not_finite_stops_the_run(small_config, tmp_path, restore):
    exploding_config = small_config(method='supervised', **EXPLODING)
    with pytest.raises(UserError, match=r'is not finite at step 3; .*Lower optimizer\.learning_rate, with'):
        train(exploding_config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'result.json').exists()
    step, arrays, _ = restore(tmp_path / 'run')
    assert step == 2
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert [line['step'] for line in metric_log.read(tmp_path / 'run')] == [1, 2]
    # The same command gives the same error.
    with pytest.raises(UserError, match='is not finite at step 3') as error_info:
        train(exploding_config, tmp_path / 'run')
    assert restore(tmp_path / 'run')[0] == 2
    note = json.loads((tmp_path / 'run' / 'diverged.json').read_text())
    assert note == {'reason': str(error_info.value)}


def test_a_teacher_whose_loss_is_not_finite_is_named(small_config, tmp_path):
    bad = {
        'teacher__optimizer__name': 'sgd',
        'teacher__optimizer__learning_rate': 1e30,
    }
    with pytest.raises(UserError, match=r'not finite at step .*Lower teacher\.optimizer\.learning_rate'):
        train(small_config(**bad), tmp_path)
    assert not (tmp_path / 'result.json').exists()
    assert not (tmp_path / 'teacher' / 'result.json').exists()
    assert not (tmp_path / 'checkpoints').exists()
    # The student's run reports it, too.
    notes = [place / 'diverged.json' for place in (tmp_path, tmp_path / 'teacher')]
    assert notes[0].read_text() == notes[1].read_text()


def test_what_is_noted_of_a_divergence_goes_when_the_run_is_started_again(tmp_path):
    note = tmp_path / 'diverged.json'
    with pytest.raises(Diverged), run_lib._lock_workdir(tmp_path):
        raise Diverged('not finite')
    assert json.loads(note.read_text()) == {'reason': 'not finite'}
    with pytest.raises(UserError), run_lib._lock_workdir(tmp_path):
        assert not note.exists()
        raise UserError('something else')
    assert not note.exists()
    # If it cannot be written, the error is still the same.
    note.mkdir()
    with pytest.raises(Diverged), run_lib._lock_workdir(tmp_path):
        raise Diverged('not finite')


@pytest.mark.parametrize('most', [small_arrays.MAX_ELEMENTS, -1], ids=['seen by NumPy', 'compiled'])
def test_parameters_that_overflow_in_the_last_step_are_not_saved(
    most, small_config, tmp_path, restore, monkeypatch
):
    """The loss of the last step is finite, but its update is not."""
    monkeypatch.setattr(small_arrays, 'MAX_ELEMENTS', most)
    bad = small_config(
        method='supervised',
        optimizer__learning_rate=3e38,
        optimizer__weight_decay=100.0,
        optimizer__warmup_steps=1,
        num_steps=2,
        save_every=1,
    )
    with pytest.raises(UserError, match='is not finite at step 2'):
        train(bad, tmp_path)
    assert not (tmp_path / 'result.json').exists()
    assert restore(tmp_path)[0] == 1
