"""What is saved comes back, and what is damaged is passed over."""

import hashlib
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.errors import UserError
from td_jax.files import checkpoints


def state_of(step):
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
    with_steps(tmp_path / 'checkpoints', 1, 2)
    return tmp_path / 'checkpoints'


def with_steps(folder, *steps):
    saved = checkpoints.Checkpoints(folder)
    for step in steps:
        saved.save(step, state_of(step), {'teacher': 'abc'})
    saved.close()


def restored(folder):
    saved = checkpoints.Checkpoints(folder)
    found = saved.restore()
    saved.close()
    return found


def test_what_is_saved_comes_back(folder):
    step, arrays, facts = restored(folder)
    assert step == 2
    assert facts['teacher'] == 'abc'
    assert set(arrays) == {
        'step',
        'params/student/kernel',
        'params/communication/0/bias',
        'params/communication/1',
    }
    assert_same(checkpoints.rebuilt(state_of(0), arrays), state_of(2))


def test_nothing_comes_back_of_nothing(tmp_path):
    assert restored(tmp_path / 'empty') is None


def test_the_two_newest_are_kept(folder):
    with_steps(folder, 3, 4)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ['3', '4']


def largest_file(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


def delete(path):
    path.unlink()


@pytest.mark.parametrize(
    ('damage', 'with_digests'),
    # A byte that no array reads is noticed by the digests alone.
    [(flip, True), *((damage, has) for damage in (cut, empty, delete) for has in (True, False))],
)
def test_a_damaged_newest_one_is_passed_over(folder, caplog, damage, with_digests):
    if not with_digests:
        (folder / '2' / checkpoints.DIGESTS).unlink()
    damage(largest_file(folder / '2' / 'state'))
    with caplog.at_level(logging.WARNING):
        step, arrays, _ = restored(folder)
    assert step == 1
    assert_same(checkpoints.rebuilt(state_of(0), arrays), state_of(1))
    assert 'Checkpoint 2' in caplog.text
    # What was there is kept for a person to look at, and the step can be saved again.
    assert (folder / 'unreadable-2').is_dir()
    with_steps(folder, 2)
    assert restored(folder)[0] == 2


def test_damaged_twice_is_set_aside_twice(folder):
    for _ in range(2):
        cut(largest_file(folder / '2' / 'state'))
        assert restored(folder)[0] == 1
        with_steps(folder, 2)
    assert {'unreadable-2', 'unreadable-2-1'} <= {path.name for path in folder.iterdir()}
    assert restored(folder)[0] == 2


def test_an_array_that_is_not_what_was_saved_is_noticed(folder, caplog):
    """Damage that every file of a checkpoint agrees on: a content of another run."""
    facts = next((folder / '2' / 'facts').rglob('metadata'))
    content = json.loads(facts.read_text())
    content['fingerprint'] = '0' * 64
    facts.write_text(json.dumps(content))
    (folder / '2' / checkpoints.DIGESTS).unlink()
    with caplog.at_level(logging.WARNING):
        assert restored(folder)[0] == 1
    assert 'not what was saved' in caplog.text


@pytest.mark.parametrize('name', ['notes.txt', '7', '9.orbax-checkpoint-tmp-1'])
def test_strangers_in_the_folder_do_no_harm(folder, name):
    if name.endswith('.txt'):
        (folder / name).write_text('mine')
    else:
        (folder / name).mkdir()
    assert restored(folder)[0] == 2
    with_steps(folder, 7)
    assert restored(folder)[0] == 7


def test_all_damaged_is_none(folder):
    for step in ('1', '2'):
        cut(largest_file(folder / step / 'state'))
    assert restored(folder) is None


def test_a_save_that_fails_leaves_the_older_ones(folder, monkeypatch):
    saved = checkpoints.Checkpoints(folder)

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(saved._manager, 'save', full)
    with pytest.raises(UserError, match=r'step 3 could not be written.*No space left'):
        saved.save(3, state_of(3), {})
        saved.wait()
    saved.close()
    assert restored(folder)[0] == 2


def test_a_save_that_failed_is_told_at_the_next_one(folder, monkeypatch):
    saved = checkpoints.Checkpoints(folder)
    with monkeypatch.context() as patch:
        patch.setattr(saved._manager, 'save', lambda *_, **__: False)
        saved.save(3, state_of(3), {})
        with pytest.raises(UserError, match='refused to write the checkpoint of step 3'):
            saved.save(4, state_of(4), {})
    saved.save(5, state_of(5), {})
    saved.close()
    assert restored(folder)[0] == 5


def test_a_state_may_change_while_it_is_saved(folder):
    """What is saved is the state at the call, not what the arrays hold when the disk is ready."""
    state = jax.tree.map(np.array, state_of(3))
    saved = checkpoints.Checkpoints(folder)
    expected = checkpoints.fingerprint(state)
    saved.save(3, state, {})
    for leaf in jax.tree.leaves(state):
        leaf[...] = 0
    saved.close()
    step, arrays, _ = restored(folder)
    assert (step, checkpoints.fingerprint(arrays)) == (3, expected)


def test_rebuilt_names_what_is_missing_or_misshapen():
    arrays = checkpoints.named(state_of(1))
    with pytest.raises(ValueError, match=r'params/student/kernel has shape \(3, 2\); expected \(2, 3\)'):
        checkpoints.rebuilt(state_of(0), {**arrays, 'params/student/kernel': np.zeros((3, 2))})
    del arrays['step']
    with pytest.raises(ValueError, match='step is missing'):
        checkpoints.rebuilt(state_of(0), arrays)


def test_named_arrays_are_copies():
    """The next step may be given the buffers that a view would share."""
    leaf = np.zeros(3, np.float32)
    name_and_copy = checkpoints.named({'a': leaf})
    leaf[0] = 1
    assert name_and_copy['a'][0] == 0


def test_fingerprint_is_sha256_of_names_types_shapes_and_bytes():
    array = np.asarray([[1.5, 2.5]], np.float32)
    expected = hashlib.sha256(b'a float32 (1, 2)' + array.tobytes()).hexdigest()
    assert checkpoints.fingerprint({'a': array}) == expected


def test_fingerprint_tells_trees_apart_but_not_their_order():
    array = np.arange(6, dtype=np.float32)
    tree = {'a': array, 'b': array + 1}
    print_of = checkpoints.fingerprint
    assert print_of(tree) == print_of(dict(reversed(tree.items())))
    others = [
        {'a': array, 'c': array + 1},
        {'a': array, 'b': array + 1.5},
        {'a': array, 'b': (array + 1).reshape(2, 3)},
        {'a': array, 'b': (array + 1).view(np.int32)},
        {'a': array},
    ]
    assert len({print_of(tree), *map(print_of, others)}) == 6
