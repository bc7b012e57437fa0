"""Checkpoints: saved states are restored, and damaged ones are skipped."""

import asyncio
import gc
import json
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from td_jax.errors import UserError
from td_jax.files import checkpoints, quiet
from tests import forked


def make_state(step):
    return {
        'step': jnp.asarray([step], jnp.int32),
        'params': {
            'student': {'kernel': jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + step},
            'communication': ({'bias': jnp.full((5,), 0.1 * step, jnp.float32)}, jnp.asarray([True, False])),
        },
    }


def assert_same(left, right):
    leaves, others = jax.tree.leaves(left), jax.tree.leaves(right)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(leaves, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1 and 2."""
    save_steps(tmp_path / 'checkpoints', 1, 2)
    return tmp_path / 'checkpoints'


def save_steps(folder, *steps):
    manager = checkpoints.Checkpoints(folder)
    for step in steps:
        manager.save(step, make_state(step), {'teacher': 'abc'})
    manager.close()


def restore(folder, like=None):
    manager = checkpoints.Checkpoints(folder)
    progress = manager.restore(make_state(0) if like is None else like)
    manager.close()
    return progress


def test_what_is_saved_comes_back(folder):
    step, state, metadata = restore(folder)
    assert (step, metadata) == (2, {'teacher': 'abc'})
    assert_same(state, make_state(2))


def test_orbax_alone_reads_a_checkpoint(folder):
    """Reads a checkpoint with no code of td_jax."""
    with ocp.CheckpointManager(folder) as manager:
        state = manager.restore(2, args=ocp.args.Composite(state=ocp.args.StandardRestore()))['state']
    expected = {
        'step': make_state(2)['step'],
        'params/student/kernel': make_state(2)['params']['student']['kernel'],
        'params/communication/0/bias': make_state(2)['params']['communication'][0]['bias'],
        'params/communication/1': make_state(2)['params']['communication'][1],
    }
    assert_same({name: state[name] for name in expected}, expected)
    assert state.keys() == expected.keys()


def test_nothing_comes_back_of_nothing(tmp_path):
    assert restore(tmp_path / 'empty') is None


def test_the_two_newest_are_kept(folder):
    save_steps(folder, 3, 4)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ['3', '4']


def find_largest_file(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def cut_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_file(path):
    path.write_bytes(b'')


def delete_file(path):
    path.unlink()


@pytest.mark.parametrize(
    ('damage', 'with_digests'),
    # Only the digests notice a byte that no array reads.
    [
        (flip_a_byte, True),
        *((damage, has) for damage in (cut_file, empty_file, delete_file) for has in (True, False)),
    ],
)
def test_a_damaged_newest_one_is_passed_over(folder, caplog, damage, with_digests):
    if not with_digests:
        (folder / '2' / checkpoints.DIGESTS.format(process=0)).unlink()
    damage(find_largest_file(folder / '2' / 'state'))
    with caplog.at_level(logging.WARNING):
        step, state, _ = restore(folder)
    assert step == 1
    assert_same(state, make_state(1))
    assert 'Checkpoint 2' in caplog.text
    # The damaged checkpoint is kept for inspection, and the step can be saved again.
    assert (folder / 'unreadable-2').is_dir()
    save_steps(folder, 2)
    assert restore(folder)[0] == 2


def test_damaged_twice_is_set_aside_twice(folder):
    for _ in range(2):
        cut_file(find_largest_file(folder / '2' / 'state'))
        assert restore(folder)[0] == 1
        save_steps(folder, 2)
    assert {'unreadable-2', 'unreadable-2-1'} <= {path.name for path in folder.iterdir()}
    assert restore(folder)[0] == 2


def test_an_array_that_is_not_what_was_saved_is_noticed(folder, caplog):
    """Files that are consistent, but with the content of another run."""
    metadata_file = next((folder / '2' / 'facts').rglob('metadata'))
    content = json.loads(metadata_file.read_text())
    content['fingerprints']['step'] = content['fingerprints']['step'][:-1] + 'x'
    metadata_file.write_text(json.dumps(content))
    (folder / '2' / checkpoints.DIGESTS.format(process=0)).unlink()
    with caplog.at_level(logging.WARNING):
        assert restore(folder)[0] == 1
    assert 'not what was saved' in caplog.text


@pytest.mark.parametrize('name', ['notes.txt', '7', '9.orbax-checkpoint-tmp-1'])
def test_strangers_in_the_folder_do_no_harm(folder, name):
    if name.endswith('.txt'):
        (folder / name).write_text('mine')
    else:
        (folder / name).mkdir()
    assert restore(folder)[0] == 2
    save_steps(folder, 7)
    assert restore(folder)[0] == 7


def fail_for_memory():
    """Raises the error of JAX for a device without free memory."""
    jnp.zeros(25 * 10**12, jnp.float32).block_until_ready()


def test_a_device_that_fails_is_no_damage(folder, monkeypatch):
    """Even if Orbax raises it as an error of its own."""

    def raise_as_its_own(*arguments, **named):
        try:
            fail_for_memory()
        except jax.errors.JaxRuntimeError as error:
            raise ValueError('the array could not be read') from error

    monkeypatch.setattr(ocp.CheckpointManager, 'restore', raise_as_its_own)
    with pytest.raises(ValueError, match='the array could not be read'):
        restore(folder)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'metadata', lambda *arguments: fail_for_memory())
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
        checkpoints.read_shapes(folder, 2)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ['1', '2']


@pytest.mark.parametrize(
    'error',
    [
        PermissionError(13, 'Permission denied'),
        ConnectionResetError(104, 'Connection reset by peer'),
        MemoryError(),
        ValueError('UNAVAILABLE: Error reading "gs://b/run": CURL error Could not resolve host'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_read_now_is_no_damage(folder, error, monkeypatch):
    def raise_error(*arguments, **named):
        raise error

    message = rf'^the checkpoint of step 2 in {folder} cannot be read now, and is left as it is: .+\.$'
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, '_compute_digests', raise_error)
        for ask in (restore, lambda folder: checkpoints.read(folder, 2, {})):
            with pytest.raises(UserError, match=message):
                ask(folder)
    assert restore(folder)[0] == 2


SHORT_OF_FILES = """
import os, resource, sys
import jax.numpy as jnp
from etils import epath
from td_jax.errors import UserError
from td_jax.files import checkpoints

state = {'a': jnp.arange(3000.0)}
saved = checkpoints.Checkpoints(epath.Path(sys.argv[1]))
saved.save(1, state, {})
saved.wait()
most = resource.getrlimit(resource.RLIMIT_NOFILE)
# As many as are open, so that no other can be.
resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir('/proc/self/fd'))), most[1]))
try:
    saved.restore(state)
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, most)
print(saved.restore(state)[0])
"""


def test_a_process_that_may_open_no_more_files_sets_no_checkpoint_aside(tmp_path):
    completed = forked.run(
        ['-c', SHORT_OF_FILES, str(tmp_path / 'saved')], env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
    )
    assert completed.returncode == 0, completed.stderr
    first, second = completed.stdout.splitlines()
    assert first.endswith('cannot be read now, and is left as it is: Too many open files.')
    assert second == '1'


def test_all_damaged_is_none(folder):
    for step in ('1', '2'):
        cut_file(find_largest_file(folder / step / 'state'))
    assert restore(folder) is None


def test_a_save_that_fails_leaves_the_older_ones(folder, monkeypatch):
    manager = checkpoints.Checkpoints(folder)

    def fail_to_save(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(manager._manager, 'save', fail_to_save)
    with pytest.raises(UserError, match=r'step 3 could not be written.*No space left'):
        manager.save(3, make_state(3), {})
        manager.wait()
    manager.close()
    assert restore(folder)[0] == 2


def test_a_save_that_failed_is_reported_at_the_next_one(folder, monkeypatch):
    manager = checkpoints.Checkpoints(folder)

    def fail_to_digest(*_):
        raise ValueError('a long chain of TensorStore') from OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.hashlib, 'file_digest', fail_to_digest)
        manager.save(3, make_state(3), {})
        with pytest.raises(UserError, match=r'step 3 could not be written to .*: No space left on device$'):
            manager.save(4, make_state(4), {})
    manager.save(5, make_state(5), {})
    manager.close()
    assert restore(folder)[0] == 5


def test_a_save_that_orbax_refuses_is_reported(folder, monkeypatch):
    manager = checkpoints.Checkpoints(folder)
    monkeypatch.setattr(manager._manager, 'save', lambda *_, **__: False)
    with pytest.raises(UserError, match='refused to write the checkpoint of step 3'):
        manager.save(3, make_state(3), {})
    manager.close()
    assert restore(folder)[0] == 2


@pytest.mark.parametrize('make', [np.array, jnp.array])
def test_a_state_may_change_while_it_is_saved(folder, make):
    """The state at the call is saved, whatever the arrays hold when they are written."""
    state = jax.tree.map(make, make_state(3))
    manager = checkpoints.Checkpoints(folder)
    manager.save(3, state, {})
    if make is np.array:
        for leaf in jax.tree.leaves(state):
            leaf[...] = 0
    else:
        # The next step reuses the buffers.
        step = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0, keep_unused=True)
        jax.block_until_ready(step(state))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    manager.close()
    step, state, _ = restore(folder)
    assert step == 3
    assert_same(state, make_state(3))


def make_changed_state(name, leaf):
    """The state without one leaf, or with another in its place."""
    state = make_state(2)
    del state['params']['student']['kernel']
    if leaf is not None:
        state['params']['student'][name] = leaf
    return state


@pytest.mark.parametrize(
    ('like', 'words'),
    [
        (
            make_changed_state('kernel', None),
            r'params/student/kernel is float32 \(2, 3\) there and is missing here',
        ),
        (
            make_changed_state('kernel', jnp.zeros((3, 2))),
            r'kernel is float32 \(2, 3\) there and is float32 \(3, 2\) here',
        ),
        (
            make_changed_state('kernel', jnp.zeros((2, 3), jnp.bfloat16)),
            r'there and is bfloat16 \(2, 3\) here',
        ),
        (
            make_changed_state('bias', jnp.zeros(1)),
            r'params/student/bias is missing there and is float32 \(1,\) here\. Choose another --workdir',
        ),
    ],
)
def test_a_checkpoint_of_other_names_or_shapes_is_refused_and_stays(folder, like, words):
    with pytest.raises(UserError, match=f'step 2 in .* does not fit this version of td_jax: .*{words}'):
        restore(folder, like)
    assert restore(folder)[0] == 2


def test_facts_are_checked_before_the_names(folder):
    """Another teacher is reported as such, not by the shapes that differ because of it."""

    def refuse(metadata):
        raise UserError(f'not {metadata["teacher"]}')

    manager = checkpoints.Checkpoints(folder)
    with pytest.raises(UserError, match=r'^not abc$'):
        manager.restore(make_changed_state('kernel', None), refuse)
    manager.close()
    assert restore(folder)[0] == 2


# --- Reading without restoring ---------------------------------------------------------------------


def test_what_is_there_is_described_without_its_data(folder):
    shapes = checkpoints.read_shapes(folder, 2)
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        'step': ((1,), jnp.int32),
        'params/student/kernel': ((2, 3), jnp.float32),
        'params/communication/0/bias': ((5,), jnp.float32),
        'params/communication/1': ((2,), bool),
    }


def test_arrays_are_read_by_name_and_nothing_is_touched(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    kernel = checkpoints.read_shapes(folder, 1)['params/student/kernel']
    arrays = checkpoints.read(folder, 1, {'params/student/kernel': kernel})
    assert arrays.keys() == {'params/student/kernel'}
    assert type(arrays['params/student/kernel']) is np.ndarray
    np.testing.assert_array_equal(
        arrays['params/student/kernel'], make_state(1)['params']['student']['kernel'], strict=True
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before


@pytest.mark.parametrize('damage', [flip_a_byte, cut_file, empty_file, delete_file])
def test_a_damaged_checkpoint_is_not_read(folder, damage):
    shapes = checkpoints.read_shapes(folder, 2)
    damage(find_largest_file(folder / '2' / 'state'))
    with pytest.raises(checkpoints.Unreadable, match='is not as it was saved'):
        checkpoints.read(folder, 2, shapes)
    assert (folder / '2').is_dir()


def test_a_checkpoint_that_is_not_there_is_not_read(folder):
    for ask in (checkpoints.read_shapes, lambda *where: checkpoints.read(*where, {})):
        with pytest.raises(checkpoints.Unreadable, match='step 7') as error_info:
            ask(folder, 7)
        assert len(str(error_info.value).splitlines()) == 1
    assert not (folder / '7').exists()


FILLS = """
import resource, sys
import jax.numpy as jnp
from absl import logging
from td_jax import command_line
from td_jax.errors import UserError
from td_jax.files import checkpoints, quiet

logging.set_verbosity(logging.WARNING)
quiet.silence_failed_saves()
left = int(sys.argv[2])


def fill(event, arguments):
    global left
    if any(isinstance(path, str) and '2.orbax-checkpoint-tmp' in path for path in arguments):
        left -= event in ('open', 'os.mkdir', 'os.rename')
        if left == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


sys.addaudithook(fill)
state = {name: jnp.arange(3000.0) for name in 'abcdefgh'}
saved = checkpoints.Checkpoints(sys.argv[1])
try:
    try:
        for step in (1, 2, 3):
            saved.save(step, state, {})
    finally:
        saved.close()
except UserError as error:
    command_line.fail(error)
"""


@pytest.mark.parametrize('moment', [1, 3, 5, 7])
def test_a_disk_that_is_full_is_one_line_wherever_orbax_meets_it(tmp_path, moment):
    completed = forked.run(
        ['-c', FILLS, str(tmp_path / 'saved'), str(moment)], env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
    )
    assert (completed.returncode, completed.stdout) == (2, '')
    assert completed.stderr == (
        f'td_jax: the checkpoint of step 2 could not be written to {tmp_path}/saved: File too large\n'
    )
    assert restore(tmp_path / 'saved', {name: jnp.zeros(3000) for name in 'abcdefgh'})[0] == 1


# --- On several devices ----------------------------------------------------------------------------

EIGHT = """
import sys
import jax, numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from td_jax.files import checkpoints

folder, action = epath.Path(sys.argv[1]), sys.argv[2]
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ('data', 'fsdp'))
whole, cut = (NamedSharding(mesh, PartitionSpec(*names)) for names in ((), (None, 'fsdp')))
values = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
if action == 'save':
    state = {'a': jax.device_put(values, cut), 'b': jax.device_put(np.float32(7), whole)}
    manager = checkpoints.Checkpoints(folder)
    manager.save(1, state, {})
    manager.close()
else:
    shapes = checkpoints.read_shapes(folder, 1)
    cut_shapes = {'a': jax.ShapeDtypeStruct((3, 16), np.float32, sharding=cut)}
    array = checkpoints.read(folder, 1, cut_shapes)['a']
    np.testing.assert_array_equal(np.asarray(array), values)
    shards = {shard.data.shape for shard in array.addressable_shards}
    print(len(array.sharding.device_set), *shards, max(x.nbytes for x in jax.live_arrays()[:]))
"""


def run_on_eight_devices(folder, action):
    completed = forked.run(
        ['-c', EIGHT, str(folder), action],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'},
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_one_device_reads_what_eight_saved_and_eight_what_one_saved(tmp_path):
    run_on_eight_devices(tmp_path / 'eight', 'save')
    values = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
    step, state, _ = restore(tmp_path / 'eight', {'a': jnp.zeros((3, 16)), 'b': jnp.float32(0)})
    np.testing.assert_array_equal(state['a'], values)
    assert (step, state['b'], len(state['a'].sharding.device_set)) == (1, 7, 1)

    manager = checkpoints.Checkpoints(tmp_path / 'one')
    manager.save(1, {'a': jnp.asarray(values), 'b': jnp.float32(7)}, {})
    manager.close()
    devices, *shard, _ = run_on_eight_devices(tmp_path / 'one', 'read').split(' ')
    assert (devices, ' '.join(shard)) == ('8', '(3, 4)')


# --- Messages of Orbax -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('place', 'error', 'is_logged'),
    [
        ('site-packages/orbax/writer.py', 'No space left on device', False),
        ('ours.py', 'No space left on device', True),
        ('ours.py', 'Error writing "a" at "run/checkpoints/4.orbax-checkpoint-tmp/state/"', False),
        ('ours.py', "Error writing a in OCDBT database [tensorstore_spec='{}']", False),
    ],
)
@pytest.mark.parametrize('kind', ['Task', 'Future', '_GatheringFuture'])
def test_a_second_write_of_orbax_that_fails_is_no_traceback(kind, place, error, is_logged, caplog):
    """Orbax retrieves the error of the first failed write; asyncio logs the others."""
    namespace = {'error': ValueError(error)}
    exec(compile('async def write():\n  raise error', place, 'exec'), namespace)

    async def fails_unasked():
        loop = asyncio.get_running_loop()
        task = None
        if kind == 'Task':
            task = loop.create_task(namespace['write']())
        elif kind == '_GatheringFuture':
            task = asyncio.gather(namespace['write']())
        else:
            try:
                await namespace['write']()
            except ValueError as caught_error:
                loop.create_future().set_exception(caught_error)
        for _ in range(4):
            await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio_logger = logging.getLogger('asyncio')
    asyncio_logger.addFilter(quiet.is_not_unretrieved_orbax_error)
    try:
        asyncio.run(fails_unasked())
    finally:
        asyncio_logger.removeFilter(quiet.is_not_unretrieved_orbax_error)
    assert (f'{kind} exception was never retrieved' in caplog.text) == is_logged


# --- In a bucket -----------------------------------------------------------------------------------


def test_a_bucket_keeps_what_a_folder_keeps(place):
    save_steps(place, 1, 2, 3)
    assert sorted(path.name for path in place.iterdir() if path.name.isdigit()) == ['2', '3']
    step, state, metadata = restore(place)
    assert (step, metadata) == (3, {'teacher': 'abc'})
    assert_same(state, make_state(3))
    shapes = {'step': checkpoints.read_shapes(place, 2)['step']}
    np.testing.assert_array_equal(checkpoints.read(place, 2, shapes)['step'], [2])
    with pytest.raises(checkpoints.Unreadable, match='step 7'):
        checkpoints.read_shapes(place, 7)


@pytest.mark.parametrize('damage', ['cut', 'delete'])
def test_a_damaged_newest_one_in_a_bucket_is_passed_over(place, caplog, damage):
    save_steps(place, 1, 2)
    # Listing a bucket leaves out the scheme.
    inside = [
        epath.Path(f'gs://{folder}/{name}')
        for folder, _, names in (place / '2' / 'state').walk()
        for name in names
    ]
    largest = max(inside, key=lambda path: path.stat().length)
    if damage == 'cut':
        largest.write_bytes(largest.read_bytes()[:-7])
    else:
        largest.unlink()
    with caplog.at_level(logging.WARNING):
        step, state, _ = restore(place)
    assert step == 1
    assert_same(state, make_state(1))
    assert 'Checkpoint 2' in caplog.text
    assert (place / 'unreadable-2').is_dir()
    save_steps(place, 2)
    assert restore(place)[0] == 2
