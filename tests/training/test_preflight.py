"""What is refused before anything is written or trained."""

import contextlib
import pathlib
import re
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from td_jax import config as config_lib
from td_jax.configs import vit_tiny_cifar10
from td_jax.devices import memory as devices_memory
from td_jax.errors import UserError
from td_jax.files import checkpoints
from td_jax.training import assembly, memory, preflight
from td_jax.training.programs import Programs
from td_jax.training.run import train

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'vit_tiny.npz'


def read_refusal(config, folder):
    """The one-line error of a refused run, which has written nothing."""
    with pytest.raises(UserError) as error_info:
        train(config, folder)
    assert len(str(error_info.value).splitlines()) == 1
    assert not folder.exists()
    return str(error_info.value)


# --- Memory ----------------------------------------------------------------------------------------

# Of the students of small_config: 64 pixels, layers of 5 and 3, 5 digits.
PARAMETERS = 64 * 5 + 5 + 5 * 3 + 3 + 3 * 5 + 5


@pytest.mark.parametrize(
    ('changes', 'gigabytes', 'words'),
    [
        # Four bytes each.
        (
            {'num_seeds': 10**8},
            4e8 * PARAMETERS / 1e9,
            ('parameters of the student', 'lower num_seeds'),
        ),
        (
            {'model__hidden': (10**6, 10**6)},
            2 * 4 * (64e6 + 1e6 + 1e12 + 1e6 + 5e6 + 5) / 1e9,
            ('parameters of the student', 'the sizes of model'),
        ),
        (
            {'teacher__model__hidden': (10**6, 10**6)},
            4 * (64e6 + 1e6 + 1e12 + 1e6 + 5e6 + 5) / 1e9,
            ('parameters of the teacher', 'lower the sizes of teacher.model'),
        ),
        ({'communication__hidden': 2**31 - 1}, None, ('optimizer state', 'communication')),
        # Each round keeps states of widths 5 and 3 (student) and 7 (teacher), for 2 seeds and 8 examples.
        (
            {'td__rounds': 10**9},
            (10**9 - 1) * 2 * 8 * 4 * (5 + 3 + 7) / 1e9,
            ('conversation', 'lower td.rounds'),
        ),
        ({'model__hidden': (2**31 - 1, 2**31 - 1), 'method': 'supervised'}, None, ('parameters',)),
    ],
)
def test_what_cannot_fit_is_refused_with_its_size(changes, gigabytes, words, small_config, tmp_path):
    message = read_refusal(small_config(**changes), tmp_path / 'run')
    for word in (*words, 'this run needs at least ', f'has {devices_memory.of_machine() / 1e9:,.1f} GB'):
        assert word in message
    if gigabytes:
        size = float(re.search(r'at least ([\d,.]+) GB', message)[1].replace(',', ''))
        np.testing.assert_allclose(size, gigabytes, rtol=1e-4)


def test_a_run_fits_to_the_byte(small_config, tmp_path, monkeypatch):
    """Students, two moments each, two step counts; fifty images per seed, with labels and places."""
    config = small_config(method='supervised')
    # 2 seeds; a step count for each of the two groups of parameters.
    needed = 4 * (2 * 3 * PARAMETERS + 2 * 2 + 2 * 50 * (64 + 1 + 1))
    monkeypatch.setattr(devices_memory, 'of_device', lambda device: needed)
    assert preflight.check(config, tmp_path / 'run', Programs()).source.name == 'digits 5, 6, 7, 8, 9'
    monkeypatch.setattr(devices_memory, 'of_device', lambda device: needed - 1)
    with pytest.raises(UserError, match='this run needs at least'):
        preflight.check(config, tmp_path / 'run', Programs())


def test_the_states_that_a_teacher_keeps_are_counted(small_config, tmp_path, monkeypatch):
    """For fifty images of each of two seeds: 7, 11 and 5 numbers."""
    monkeypatch.setattr(devices_memory, 'of_device', lambda device: 10)
    monkeypatch.setattr(memory, 'check_parameters', lambda *arguments, **named: None)
    with pytest.raises(UserError) as error_info:
        preflight.check(small_config(num_seeds=1), tmp_path / 'run', Programs())
    assert 'on a device that has 0.0 GB' in str(error_info.value)
    parts = {}
    monkeypatch.setattr(memory, '_compare', lambda mesh, sizes: parts.update(sizes))
    preflight.check(small_config(), tmp_path / 'run', Programs())
    assert parts["teacher's states"][0] == 2 * 50 * 4 * (7 + 11 + 5)
    parts.clear()
    preflight.check(small_config(teacher__inputs='varied'), tmp_path / 'run', Programs())
    assert "teacher's states" not in parts


def test_a_checkpoint_has_to_fit_on_the_machine(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(devices_memory, 'of_device', lambda device: 10**15)
    message = read_refusal(small_config(model__hidden=(10**6, 10**6)), tmp_path / 'run')
    assert re.match(r'a checkpoint of this run is 24,\d{3}\.\d GB, but this machine has ', message)


def test_a_device_that_is_full_after_all_is_one_line():
    """JAX refuses to allocate a hundred terabytes."""
    with (
        pytest.raises(UserError, match=r'^a device has too little memory for this run') as error_info,
        memory.oom_as_user_error(),
    ):
        jax.numpy.zeros(25 * 10**12, np.float32).block_until_ready()
    assert len(str(error_info.value).splitlines()) == 1
    with pytest.raises(ZeroDivisionError), memory.oom_as_user_error():
        print(1 / 0)


def test_cpu_devices_share_the_memory_of_the_machine():
    (device,) = jax.local_devices()
    assert devices_memory.of_device(device) == devices_memory.of_machine()
    total = int(re.search(r'MemTotal: +(\d+) kB', pathlib.Path('/proc/meminfo').read_text())[1])
    assert 0 < devices_memory.of_machine() <= 1024 * total


def test_one_class_is_nothing_to_learn(small_config, tmp_path):
    message = read_refusal(
        small_config(method='supervised', dataset__classes=(3,), batch_size=4), tmp_path / 'run'
    )
    assert message == (
        'digits 3 has one class, so there is nothing to learn; name two or more in dataset.classes.'
    )


# --- Models with different shapes of states --------------------------------------------------------

VIT = {'name': 'vit', 'width': 8, 'layers': 2, 'mlp': 8, 'heads': 2, 'split': 1, 'patch': 8}
MLP = {'name': 'mlp', 'hidden': (6, 4), 'split': 1}
RESNET = {'name': 'resnet', 'variant': 'R8x1', 'width': 4, 'split': 1}
# (student, teacher)
PAIRS = {
    'same patch, other widths': (VIT, {**VIT, 'width': 12}),
    'same patch, other depths': (VIT, {**VIT, 'layers': 3}),
    'a smaller patch': ({**VIT, 'patch': 4}, VIT),
    'a larger patch': ({**VIT, 'patch': 16}, VIT),
    'MLP and ViT': (MLP, VIT),
    'ViT and MLP': (VIT, MLP),
    'MLP and MLP': (MLP, {**MLP, 'hidden': (7, 5, 3)}),
    'ViT and ResNet': (VIT, RESNET),
    'ResNet and ViT': (RESNET, VIT),
    'ResNet and MLP': (RESNET, MLP),
    'ResNet and ResNet': ({**RESNET, 'split': 2}, {**RESNET, 'variant': 'R50x1', 'width': 8}),
}


@pytest.fixture(scope='module')
def few_images(tmp_path_factory):
    """A folder of twelve images of each of ten classes; reading and evaluating CIFAR would take long."""
    folder = tmp_path_factory.mktemp('images')
    for number in range(120):
        file = folder / f'{number % 10}' / f'{number}.png'
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(file)
    return folder


def make_pair_config(folder, method, pair, **changes):
    student, teacher = PAIRS[pair]
    config = vit_tiny_cifar10.get_config()
    config.method, config.diagnostics = method, False
    config.dataset.name, config.dataset.path = 'images', str(folder)
    config.num_seeds, config.num_steps, config.batch_size, config.eval_batch_size = 1, 2, 8, 500
    config.optimizer.warmup_steps = config.teacher.optimizer.warmup_steps = 0
    config.teacher.num_steps = 2
    config.dataset.image_size = 16
    config.dataset.examples_per_class = config.teacher.dataset.examples_per_class = 4
    config.model.update(student)
    config.model.initial = 'random'
    config.teacher.model.update(teacher)
    config.communication.hidden = config.communication.message = 4
    config.update_from_flattened_dict(changes)
    return config


# Pairs that are trained, and whether with diagnostics, which double the time to compile.
TRAINED = [
    *(('td', 'a smaller patch', True), ('td', 'ResNet and ViT', False)),
    *(('srd', 'same patch, other widths', True), ('dkd', 'ViT and MLP', True)),
    ('fitnet', 'ResNet and MLP', True),
]
TRAINED_BY_TD = {pair for method, pair, _ in TRAINED if method == 'td'}


@pytest.mark.parametrize(
    'pair',
    [
        pair if pair == 'MLP and ViT' else pytest.param(pair, marks=pytest.mark.long)
        for pair in PAIRS
        if pair not in TRAINED_BY_TD
    ],
)
def test_states_of_any_two_models_can_be_compared(pair, few_images, tmp_path):
    """The whole step can be traced."""
    config = make_pair_config(few_images, 'td', pair)
    assert preflight.check(config, tmp_path / 'run', Programs()).source.task == 'classification'
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
@pytest.mark.parametrize(('method', 'pair', 'diagnostics'), TRAINED)
def test_unlike_models_train(method, pair, diagnostics, few_images, tmp_path):
    config = make_pair_config(few_images, method, pair, diagnostics=diagnostics)
    assert np.isfinite(train(config, tmp_path)['mean'])


def test_a_model_that_does_not_fit_its_data_is_one_line(small_config, tmp_path):
    message = read_refusal(
        small_config(method='supervised', model__name='resnet', model__variant='R8x1'), tmp_path / 'run'
    )
    assert message.startswith(
        'method supervised cannot be computed for the models as they are: A ResNet reads'
    )


def test_a_student_that_cannot_start_from_its_teacher_is_refused(few_images, tmp_path):
    config = make_pair_config(few_images, 'supervised', 'a smaller patch')
    config.model.initial = 'teacher'
    assert 'model.initial is teacher, but ' in read_refusal(config, tmp_path / 'run')


def test_what_jax_refuses_to_trace_is_one_line(small_config, tmp_path, monkeypatch):
    def raise_error(*arguments):
        raise TypeError('shapes (3,) and (4,)\nare long to tell')

    monkeypatch.setattr(assembly, 'abstract', raise_error)
    message = read_refusal(small_config(), tmp_path / 'run')
    assert message == 'method td cannot be computed for the models as they are: shapes (3,) and (4,)'


# --- Teachers that cannot teach --------------------------------------------------------------------


def make_golden_config(folder, checkpoint, **changes):
    """The config of a student of the golden ViT, which has ten classes."""
    config = make_pair_config(folder, 'ld', 'same patch, other depths')
    config.dataset.image_size = 32
    config.teacher.pretrained = str(checkpoint)
    config.dataset.classes = ()
    config.teacher.labels = 'shared'
    config.teacher.model.update({'width': 48, 'layers': 6, 'mlp': 96, 'heads': 4})
    config.update_from_flattened_dict(changes)
    return config


def test_a_teacher_that_is_not_finite_is_refused_by_parameter(small_config, tmp_path):
    place = tmp_path / 'teacher'
    train(config_lib.teacher_run(small_config()), place)
    checkpoint_folder = place / 'checkpoints'
    arrays = checkpoints.read(checkpoint_folder, 4, checkpoints.read_shapes(checkpoint_folder, 4))
    arrays['params/student/output_layer/bias'] = np.full((1, 5), np.nan, np.float32)
    shutil.rmtree(checkpoint_folder / '4')
    with contextlib.closing(checkpoints.Checkpoints(checkpoint_folder)) as manager:
        manager.save(4, arrays, {'teacher': None})
    message = read_refusal(small_config(teacher__checkpoint=str(place)), tmp_path / 'run')
    assert message == f'the teacher in {place} cannot teach: its parameter output_layer/bias is not finite.'


@pytest.mark.long
def test_a_teacher_whose_predictions_are_not_finite_is_refused(few_images, tmp_path):
    """Its parameters are finite, but their products overflow."""
    arrays = {
        name: np.full_like(array, 3e38) if name == 'head/kernel' else array
        for name, array in np.load(GOLDEN).items()
    }
    np.savez(tmp_path / 'large.npz', **arrays)
    with pytest.raises(UserError, match=r'^the teacher cannot teach: its accuracy on images.* is nan\.'):
        train(make_golden_config(few_images, tmp_path / 'large.npz'), tmp_path / 'run')
    assert not (tmp_path / 'run' / 'config.json').exists()


# --- After a refusal -------------------------------------------------------------------------------

# The first loss is finite; at the second the parameters are near 1e30.
EXPLODING = {'optimizer__name': 'sgd', 'optimizer__learning_rate': 1e30, 'save_every': 6}


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param({'num_seeds': 10**9}, marks=pytest.mark.long),
        {'dataset__classes': (5, 11)},
        pytest.param({'method': 'supervised', **EXPLODING}, marks=pytest.mark.long),
        pytest.param(EXPLODING, marks=pytest.mark.long),
        pytest.param(
            {f'teacher__{key}': value for key, value in EXPLODING.items() if key != 'save_every'},
            marks=pytest.mark.long,
        ),
    ],
)
def test_after_a_refusal_the_corrected_command_works(changes, small_config, tmp_path):
    with pytest.raises(UserError):
        train(small_config(**changes), tmp_path / 'run')
    assert not (tmp_path / 'run' / 'config.json').exists()
    # The new config differs from the refused one in more than the error.
    other_config = small_config(method='fitnet', model__hidden=(6, 3), log_every=3)
    assert train(other_config, tmp_path / 'run')['steps'] == 6


def test_a_first_save_that_fails_leaves_no_config(small_config, tmp_path, monkeypatch):
    def raise_error(*arguments):
        raise UserError('the disk is full')

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, 'save', raise_error)
        with pytest.raises(UserError, match='the disk is full'):
            train(small_config(method='supervised'), tmp_path)
    assert not (tmp_path / 'config.json').exists()
    assert train(small_config(method='supervised', model__hidden=(6, 3)), tmp_path)['steps'] == 6


def test_a_refusal_after_a_save_keeps_what_was_saved(small_config, tmp_path):
    bad = {**EXPLODING, 'save_every': 1, 'method': 'supervised'}
    with pytest.raises(UserError, match=r'is as it was before\. Lower optimizer.* with another --workdir\.$'):
        train(small_config(**bad), tmp_path)
    assert (tmp_path / 'config.json').exists()
    with pytest.raises(UserError, match='holds a run with another config'):
        train(small_config(method='supervised'), tmp_path)


def test_nothing_saved_is_reported(small_config, tmp_path):
    with pytest.raises(UserError, match=r'; nothing is saved\. Lower .*, with the same --workdir\.$'):
        train(small_config(method='supervised', **EXPLODING), tmp_path)
