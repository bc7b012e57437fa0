"""Training runs on streamed data: the real ImageNet sample."""

import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from td_jax.configs import vit_imagenet
from td_jax.data import SOURCES
from td_jax.devices import memory, sharding
from td_jax.errors import UserError
from td_jax.files import metric_log, workdir
from td_jax.randomness import derive_seed
from td_jax.training import assembly, dispatch
from td_jax.training.run import train
from tests import forked

pytestmark = pytest.mark.usefixtures('shared_programs')
# A ViT of 2 tokens, because the model is not what is tested.
SMALL = {
    'method': 'supervised',
    'num_steps': 12,
    'batch_size': 16,
    'eval_batch_size': 32,
    'log_every': 3,
    'save_every': 3,
    'compute_dtype': 'float32',
    'dataset.image_size': 32,
    'dataset.shuffle_buffer': 64,
    'optimizer.warmup_steps': 2,
    'model.initial': 'random',
    'model.layers': 1,
    'model.width': 8,
    'model.mlp': 8,
    'model.heads': 2,
    'model.split': 1,
}


def make_small_config(**changes):
    config = vit_imagenet.get_config()
    config.update_from_flattened_dict({**SMALL, **{key.replace('__', '.'): v for key, v in changes.items()}})
    return config


@pytest.fixture(scope='module')
def uninterrupted_run(tmp_path_factory, imagenet_data):
    """The workdir of an uninterrupted run."""
    folder = tmp_path_factory.mktemp('undisturbed') / 'run'
    train(make_small_config(), folder)
    return folder


def test_what_is_shuffled_at_once_has_to_fit_on_the_machine(imagenet_data, tmp_path, monkeypatch):
    """A shuffle buffer of half of the images, and one larger than the data set."""
    config = make_small_config(dataset__shuffle_buffer=120)
    half = assembly.load_source(config, config.dataset).train.host_bytes
    config.dataset.shuffle_buffer = 10**6
    source = assembly.load_source(config, config.dataset).train
    whole = source.host_bytes
    files = pathlib.Path(os.environ['TFDS_DATA_DIR']).glob('imagenet2012/*/imagenet2012-train.tfrecord*')
    # A file has 16 bytes in addition per record.
    assert whole == sum(path.stat().st_size for path in files) - 16 * source.count
    assert half == whole * 120 // source.count
    monkeypatch.setattr(memory, 'of_machine', lambda: 10_000_000)
    with pytest.raises(
        UserError, match=r'shuffled at once are [\d.]+ GB.*: lower dataset\.shuffle_buffer\.$'
    ):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_a_run_reads_every_evaluation_image_once(uninterrupted_run):
    result = json.loads((uninterrupted_run / workdir.RESULT).read_text())
    # 80 images: the accuracy is a whole number of 80ths.
    assert result['values'][0] * 80 == pytest.approx(round(result['values'][0] * 80))
    assert result['dataset'].startswith('imagenet')
    steps = [line['step'] for line in metric_log.read(uninterrupted_run)]
    assert steps == [3, 6, 9, 12, 12]


def run_and_kill(folder, after_steps):
    """Starts the run in another process and kills it once it has saved the checkpoint of a step."""
    flags = [f'--config.{key}={value}' for key, value in SMALL.items()]
    process = forked.start(
        ['-m', 'td_jax.main', '--config=configs/vit_imagenet.py', f'--workdir={folder}', *flags],
        # A killed process must not leave half-written programs in the shared compilation cache.
        env={**os.environ, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1e9'},
    )
    for line in process.stderr:
        if f'step {after_steps}/' in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    return process.returncode


@pytest.mark.long
def test_a_killed_run_sees_the_same_examples_and_ends_in_the_same_parameters(
    uninterrupted_run, tmp_path, outcome
):
    assert run_and_kill(tmp_path / 'run', 6) == -signal.SIGKILL
    train(make_small_config(), tmp_path / 'run')
    assert outcome(tmp_path / 'run')['arrays'] == outcome(uninterrupted_run)['arrays']
    assert outcome(tmp_path / 'run')['result'] == outcome(uninterrupted_run)['result']


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_what_was_saved(
    imagenet_data, tmp_path, read_back
):
    bad = make_small_config(
        optimizer__learning_rate=1e18, optimizer__clip_norm=0.0, log_every=12, save_every=1
    )
    with pytest.raises(UserError, match=r'not finite at step (\d+);') as error_info:
        train(bad, tmp_path)
    step = int(str(error_info.value).split('at step ')[1].split(';')[0])
    assert 1 <= step <= 12
    last, arrays, _ = read_back(tmp_path / 'checkpoints')
    assert last < step
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_teacher_whose_states_would_be_kept_is_refused(imagenet_data, tmp_path):
    with pytest.raises(UserError, match=r'teacher\.inputs is clean'):
        train(
            make_small_config(
                method='td',
                teacher__inputs='clean',
                teacher__pretrained='',
                teacher__model__layers=1,
                teacher__model__width=8,
                teacher__model__heads=2,
                teacher__model__split=1,
            ),
            tmp_path / 'run',
        )
    assert not (tmp_path / 'run').exists()


def test_seeds_side_by_side_read_their_own_streams(imagenet_data):
    config = make_small_config(num_seeds=2, seed=5)
    source = SOURCES['imagenet'](config.dataset, config.dataset)
    run = assembly.assemble(config, source, None, sharding.make_mesh(config))
    feed = run.feed(dispatch.seed_keys(config), 2)
    batch = next(feed)
    feed.close()
    assert batch['image'].shape == (2, 16, 32, 32, 3)
    for i in range(2):
        alone = source.train.open(derive_seed('student', 5 + i), 2, 16, slice(0, 16))
        np.testing.assert_array_equal(batch['image'][i], next(alone)['image'])
    assert not np.array_equal(batch['image'][0], batch['image'][1])
    assert jax.tree.leaves(batch)[0].sharding.mesh.shape == {'data': 1, 'fsdp': 1}
