"""Teacher outputs on disk: a run with them is the run without them, and other outputs are never used."""

import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from td_jax.configs import images
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.files import array_store
from td_jax.reproduction import cells
from td_jax.training import assembly, finished, teacher_outputs
from td_jax.training.run import train


@pytest.fixture
def own_programs():
    """Does nothing: the environment variable that is patched here is in no traced program."""


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of teacher outputs of this process."""
    monkeypatch.setenv(teacher_outputs.FOLDER, str(tmp_path / 'outputs'))
    return tmp_path / 'outputs'


def list_entries(store):
    """{text of about.json: folder} of each entry with states; the others are for probes."""
    folders = [path.parent for path in store.glob('*/logits.npy')]
    return {(folder / array_store.ABOUT).read_text(): folder for folder in folders}


def test_a_run_with_them_is_the_run_without_them(small_config, tmp_path, monkeypatch, capsys, outcome):
    config = small_config(method='fitnet', num_steps=2, teacher__num_steps=2, seed=3)
    train(config, tmp_path / 'without')
    monkeypatch.setenv(teacher_outputs.FOLDER, str(tmp_path / 'outputs'))
    config.teacher.checkpoint = str(tmp_path / 'without' / 'teacher')
    for name, word in (('first', 'kept in'), ('second', 'read from')):
        train(config, tmp_path / name)
        assert f"the teacher's outputs: {word} {tmp_path / 'outputs'}" in capsys.readouterr().err
    ends = [outcome(tmp_path / name) for name in ('without', 'first', 'second')]
    for end in ends:
        del end['config']  # where the teacher lies
    assert ends[0] == ends[1] == ends[2]
    # The stored outputs are those of the teacher for the examples that the seeds have drawn.
    ((about, entry),) = list_entries(tmp_path / 'outputs').items()
    source = assembly.load_source(config, config.dataset)
    rows = np.unique([source.train.rows(number) for number in assembly.dispatch.data_seeds(config)])
    assert json.loads(about)['description']['examples']['count'] >= len(rows)
    x = source.train.examples['image'][rows]
    params = read_params(tmp_path / 'without' / 'teacher')
    lower = np.maximum(x @ params['hidden_layers_0']['kernel'] + params['hidden_layers_0']['bias'], 0)
    np.testing.assert_allclose(np.load(entry / 'lower.npy')[: len(rows)], lower, rtol=1e-5, atol=1e-6)


def read_params(folder):
    return finished.load(epath.Path(folder), 0).params['student']


@pytest.mark.parametrize(('inputs', 'counts_of_states'), [('clean', (1, 1)), ('varied', (0, 0))])
def test_a_probe_reads_its_representations_there(
    inputs, counts_of_states, small_config, tmp_path, monkeypatch, capsys, outcome
):
    changes = {'method': 'ld', 'num_steps': 2, 'teacher__num_steps': 2, 'teacher__labels': 'probe'}
    changes['teacher__inputs'] = inputs
    config = small_config(**changes, dataset__split='validation')
    train(config, tmp_path / 'without')
    monkeypatch.setenv(teacher_outputs.FOLDER, str(tmp_path / 'outputs'))
    config.teacher.checkpoint = str(tmp_path / 'without' / 'teacher')
    # States; representations of training and validation examples, the latter read again at the end.
    states_made, states_read = counts_of_states
    for name, counts in (('first', (2 + states_made, 1)), ('second', (0, 3 + states_read))):
        train(config, tmp_path / name)
        err = capsys.readouterr().err
        assert (err.count('outputs: kept in'), err.count('outputs: read from')) == counts
    ends = [outcome(tmp_path / name) for name in ('without', 'first', 'second')]
    for end in ends:
        del end['config']  # where the teacher lies
    assert ends[0] == ends[1] == ends[2]
    shapes = [np.load(path).shape for path in (tmp_path / 'outputs').glob('*/representations.npy')]
    source = assembly.load_source(config, config.dataset)
    assert (len(source.evaluation['labels']), 11) in shapes and len(shapes) == 2


def test_methods_share_them_and_another_teacher_or_split_does_not(small_config, store, tmp_path):
    config = small_config(num_steps=1, num_seeds=1, log_every=1, save_every=1, teacher__control='untrained')
    for changes, count in (
        ({'method': 'ld'}, 1),
        ({'method': 'rkd', 'optimizer.learning_rate': 0.1}, 1),
        ({'teacher.seed': 1}, 2),
        ({'teacher.seed': 1, 'teacher.model.split': 2}, 3),
        ({'seed': 1}, 4),  # other examples
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({'method': 'ld', **changes})
        cells.run_one(tmp_path / 'runs', changed)
        assert len(list_entries(store)) == count, changes


def test_a_teacher_without_a_head_has_no_logits(small_config, store):
    config = small_config(method='fitnet', num_seeds=1)
    source, theirs = (assembly.load_source(config, part) for part in (config.dataset, config.teacher.dataset))
    teacher = assembly.untrained_teacher(config, theirs)
    teacher = teacher._replace(model=teacher.model._replace(head=lambda params, e: e[:, :0]))
    mesh = sharding.make_mesh(config)
    runs = []
    for _ in range(2):
        keep = teacher_outputs.make_keep(config, teacher, 'its fingerprint')
        runs.append(assembly.assemble(config, source, teacher, mesh, keep=keep).constants.teacher_states)
    ((_, entry),) = list_entries(store).items()
    assert np.load(entry / 'logits.npy').shape == runs[1].logits.shape == (len(runs[0].lower), 0)
    np.testing.assert_array_equal(runs[0].upper, runs[1].upper)


def test_damaged_ones_are_not_used(small_config, store, tmp_path, capsys, outcome):
    config = small_config(method='ld', num_steps=2, num_seeds=1, teacher__num_steps=1)
    train(config, tmp_path / 'first')
    config.teacher.checkpoint = str(tmp_path / 'first' / 'teacher')
    ((_, entry),) = list_entries(store).items()
    logits = np.load(entry / 'logits.npy')
    np.save(entry / 'logits.npy', logits + 1)
    capsys.readouterr()
    train(config, tmp_path / 'second')
    assert 'is damaged and is made again: logits.npy is not as it was written' in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(entry / 'logits.npy'), logits)
    assert outcome(tmp_path / 'first')['arrays'] == outcome(tmp_path / 'second')['arrays']


def test_outputs_that_are_not_of_clean_inputs_are_not_kept(small_config, store, tmp_path):
    config = small_config(
        method='fd', num_steps=1, num_seeds=1, teacher__control='untrained', teacher__inputs='varied'
    )
    assert teacher_outputs.explain_unused(config) == 'teacher.inputs is varied, and teacher.views is 0'
    assert teacher_outputs.explain_unused(small_config(method='supervised')) == 'method is supervised'
    assert teacher_outputs.explain_unused(small_config()) == ''
    train(config, tmp_path / 'run')
    assert not store.exists()


def test_a_size_needs_a_folder_and_is_a_number(small_config, store, tmp_path, monkeypatch):
    config = small_config(method='ld', num_steps=1, teacher__control='untrained')
    monkeypatch.setenv(teacher_outputs.GIGABYTES, 'much')
    with pytest.raises(UserError, match=r'TD_JAX_TEACHER_OUTPUTS_GB is much; it must be a number of GB'):
        train(config, tmp_path / 'run')
    monkeypatch.delenv(teacher_outputs.FOLDER)
    with pytest.raises(UserError, match='has no effect without --teacher_outputs'):
        teacher_outputs.use(None, 3.0)
    with pytest.raises(UserError, match='is in a bucket'):
        teacher_outputs.use('gs://bucket/outputs')


def test_the_flag_of_a_command_is_that_of_its_processes(small_config, tmp_path, run_command):
    flags = ['--config=configs/digits.py', '--config.num_steps=2', '--config.diagnostics=False']
    flags += ['--config.method=ld', '--config.teacher.control=untrained']
    flags.append(f'--teacher_outputs={tmp_path / "outputs"}')
    for name, word in (('first', 'kept in'), ('second', 'read from')):
        code, _, err = run_command('main', *flags, f'--workdir={tmp_path / name}')
        assert code == 0 and f"the teacher's outputs: {word}" in err, err
    results = [json.loads((tmp_path / name / 'result.json').read_text()) for name in ('first', 'second')]
    assert results[0] == results[1]
    # It is reported before the error.
    others = ['--config.method=supervised', '--config.dataset.classes=(99,)', f'--workdir={tmp_path / "no"}']
    code, _, err = run_command('main', *flags[:2], *others, f'--teacher_outputs={tmp_path / "outputs"}')
    assert code == 2
    assert '--teacher_outputs has no effect: method is supervised\n' in err


def test_a_folder_that_no_run_uses_is_reported(small_config, store, monkeypatch):
    """For a search or a table, one run that uses it is enough."""
    none, clean = small_config(method='supervised'), small_config()
    varied = small_config(method='fd', teacher__inputs='varied')
    message = (
        '--teacher_outputs has no effect: method is supervised; teacher.inputs is varied, and teacher.views '
        'is 0'
    )
    assert teacher_outputs.describe_unused([none, varied, none]) == message
    assert teacher_outputs.describe_unused([none, varied, clean]) == ''
    monkeypatch.delenv(teacher_outputs.FOLDER)
    assert teacher_outputs.describe_unused([none]) == ''


@pytest.mark.parametrize('kept_gb', [1.0, 0.0])
def test_a_probe_of_streamed_images_keeps_nothing_and_says_so(kept_gb, small_config, store, tmp_path):
    random = np.random.default_rng(0)
    for name in ('a', 'b'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(3):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / 'photos' / name / f'{i}.png')
    config = images.get_config()
    config.method, config.teacher.labels, config.teacher.inputs = 'ld', 'probe', 'varied'
    config.batch_size, config.dataset.image_size = 2, 8
    config.dataset.path, config.dataset.kept_gb = str(tmp_path / 'photos'), kept_gb
    for model in (config.model, config.teacher.model):
        model.layers, model.width, model.heads, model.mlp, model.patch, model.split = 1, 8, 2, 8, 4, 0
    source = assembly.load_source(config, config.dataset)
    teacher = assembly.untrained_teacher(config, assembly.load_source(config, config.teacher.dataset))
    keep = teacher_outputs.make_keep(config, teacher, 'its fingerprint')
    assembly.assemble(config, source, teacher, sharding.make_mesh(config), keep=keep).fit_probe()
    is_kept = any(store.glob('*/representations.npy'))
    assert is_kept == (kept_gb > 0)
    reason = '' if is_kept else f'--teacher_outputs has no effect: {source.name} streams from disk'
    assert teacher_outputs.describe_unused([config]) == reason
    # One run that keeps something is enough.
    assert teacher_outputs.describe_unused([config, small_config()]) == ''


@pytest.mark.long
@pytest.mark.parametrize(
    ('command', 'flags'),
    [
        (
            'tune',
            [
                *('--config=digits', '--journals={}/journals', '--output={}/choices.json'),
                *('--trials=1', '--seeds=2', '--steps=10'),
            ],
        ),
        (
            'compare',
            [
                *('--config=configs/digits.py', '--config.num_steps=10', '--config.eval_every=10'),
                *('--trials=0', '--seeds=2'),
            ],
        ),
    ],
)
def test_a_search_says_it(command, flags, tmp_path, run_command):
    flags = [flag.format(tmp_path) for flag in flags]
    flags += [f'--workdir={tmp_path / "runs"}', f'--teacher_outputs={tmp_path / "outputs"}']
    message = '--teacher_outputs has no effect'
    code, _, err = run_command(command, *flags, '--methods=supervised')
    # Ten steps are too few, which ends a search with 2.
    assert code == (2 if command == 'tune' else 0)
    assert f'td_jax: {message}: method is supervised\n' in err
    code, _, err = run_command(command, *flags, '--methods=supervised', '--only_show')
    assert code == 2
    assert f'td_jax: {message} with --only_show; leave one of them out.\n' in err


@pytest.mark.parametrize('size', ['inf', 'nan'])
def test_a_size_that_is_none_is_refused_before_a_run(size, tmp_path, monkeypatch):
    for name in (teacher_outputs.FOLDER, teacher_outputs.GIGABYTES):
        monkeypatch.setenv(name, '')
    with pytest.raises(UserError, match=rf'{teacher_outputs.GIGABYTES} is {size}; it must be a number of GB'):
        teacher_outputs.use(str(tmp_path), float(size))
