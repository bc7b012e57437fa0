"""Saves a training state with Orbax, every process its part, and restores the newest one that can be read.

A checkpoint is Orbax's own, STEP/state and STEP/facts, in a folder or a bucket, and Orbax alone can read it.
With them stand the digests of its files, by which a damaged one is found before anything of it is used.
What was read is then compared with the fingerprints of what was saved.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import logging
import os
import re

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from td_jax.devices import fingerprint, processes
from td_jax.errors import UserError, reason
from td_jax.files import workdir

KEEP = 2
_log = logging.getLogger(__name__)
# In each checkpoint, from each process that saved it: the digests of a share of its files.
DIGESTS = 'digests-{process}.json'
# The two parts of a checkpoint.
STATE, FACTS = 'state', 'facts'


class Unreadable(Exception):
    """A checkpoint that is missing, damaged, or not of the names and shapes that were asked for."""


def holds_any(folder: epath.Path) -> bool:
    """Whether a folder of checkpoints holds one, readable or not; what was never whole does not count."""
    return folder.exists() and any('.orbax-checkpoint-tmp' not in path.name for path in folder.iterdir())


def described(folder: epath.Path, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The names, shapes and types of a checkpoint's arrays, which are not read.

    Raises:
      Unreadable: there is no such checkpoint, or it is damaged.
    """
    with _reading(folder, step):
        return _described(folder, step)


def read(folder: epath.Path, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict:
    """Some arrays of a checkpoint, whatever devices and processes it was saved with; the rest is not read.

    Each process of several reads for itself what it needs, and waits for no other.

    Args:
      folder: of the checkpoints.
      step: of one that is whole.
      wanted: {name: shape and type}, of those that `described` gives; one with a sharding comes as a
        jax.Array cut so, each shard read straight to its device, and one without as a numpy array.

    Raises:
      Unreadable: the checkpoint is missing or damaged.
    """
    with _reading(folder, step):
        _check(folder / str(step))
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
        with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=_alone())) as reader:
            found = reader.restore(
                folder / str(step) / STATE,
                args=ocp.args.PyTreeRestore(
                    item=dict(wanted), restore_args=_restore_args(wanted), partial_restore=True
                ),
            )
        return {name: found[name] for name in wanted}


def steps(folder: epath.Path) -> list[int]:
    """The steps that a folder has checkpoints of, in order; whether they can be read is not looked at."""
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class Checkpoints:
    """The checkpoints of one run; each holds a state and a few facts about it as JSON.

    Every process of the run makes one and calls the same methods: each writes and reads its own shards.
    """

    def __init__(self, folder: epath.Path):
        self._folder = epath.Path(folder)
        # Waits for a save, so that training continues meanwhile.
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
        self._pending = None
        self._manager = self._open()

    def _open(self):
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=KEEP, cleanup_tmp_directories=True),
        )

    def save(self, step: int, state, facts: dict):
        """Starts to write a checkpoint; older ones go only when this one is whole.

        Waits for the save before it, and until the state is copied, so that its arrays may change then.

        Args:
          step: number of finished training steps.
          state: a tree of arrays; it is stored flat, by name.
          facts: what JSON can hold.

        Raises:
          UserError: this one or the one before could not be written; those before it are as they were.
        """
        self.wait()
        arrays = _copied(fingerprint.named(state))
        facts = {**facts, 'fingerprints': fingerprint.of_arrays(arrays)}
        with self._telling(step):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{STATE: ocp.args.StandardSave(arrays), FACTS: ocp.args.JsonSave(facts)}
                ),
                force=True,
            )
        if not saved:
            raise UserError(f'Orbax refused to write the checkpoint of step {step} to {self._folder}.')
        self._pending = self._worker.submit(self._finish, step)

    def wait(self):
        """Returns when the last save is on disk, whole.

        Raises:
          UserError: it could not be written; the checkpoints before it are as they were.
        """
        # Told once: closing after a save that failed is no second failure.
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _finish(self, step):
        """Waits until every process has written, then writes the digests of this one's share."""
        with self._telling(step):
            self._manager.wait_until_finished()
            folder = self._folder / str(step)
            path = folder / DIGESTS.format(process=jax.process_index())
            workdir.write(path, json.dumps(_digests(folder, _share(_files(folder))), indent=2) + '\n')

    @contextlib.contextmanager
    def _telling(self, step):
        """Makes one line for a person of whatever Orbax, TensorStore and the file system raise."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f'the checkpoint of step {step} could not be written to {self._folder}: {_reason(error)}'
            ) from error

    def restore(self, like, check=lambda facts: None):
        """The newest readable checkpoint, straight where `like` has its arrays.

        One that is damaged, or whose content is not what was saved, is set aside with a warning.

        Args:
          like: a tree of placed arrays, or of ShapeDtypeStructs with a sharding.
          check: is given the facts, to refuse the checkpoint with a UserError before its arrays are read.

        Returns:
          (step, a tree like `like`, facts), or None if no checkpoint is readable

        Raises:
          UserError: what `check` raises, the checkpoint has other names or shapes than `like`, or it cannot
            be read now, which says nothing of it.
        """
        for step in processes.from_main(lambda: sorted(self._manager.all_steps(), reverse=True)):
            damage, found = self._attempt(step, lambda step=step: _check(self._folder / str(step)))
            if damage is None:
                damage, found = self._attempt(step, lambda step=step: self._restore(step, like, check))
            if damage is None:
                return step, *found
            if processes.is_main():
                _log.warning('Checkpoint %d in %s is skipped: %s', step, self._folder, damage)
            self._set_aside(step)
        return None

    def _attempt(self, step, read):
        """(None, what `read()` gives), or (what is damaged in any of the processes, None).

        Raises:
          UserError: what `read` raises, or in all processes, where one of them cannot read now.
        """
        damage, hindrance, found = None, None, None
        try:
            found = read()
        except UserError:
            raise
        # Whatever a damaged file makes Orbax or the file system raise.
        except Exception as error:
            if _is_of_device(error):
                raise
            if _is_hindrance(error):
                hindrance = _reason(error)
            else:
                damage = _reason(error)
        hindrance, damage = _first(hindrance), _first(damage)
        if hindrance:
            raise UserError(_cannot_be_read(self._folder, step, hindrance))
        return damage, found

    def _restore(self, step, like, check):
        facts = self._manager.restore(step, args=ocp.args.Composite(**{FACTS: ocp.args.JsonRestore()}))[FACTS]
        check(facts)
        wanted = fingerprint.named(like)
        there = _described(self._folder, step)
        for name in sorted(wanted.keys() | there.keys()):
            ours, theirs = (shapes.get(name) for shapes in (wanted, there))
            if ours is None or theirs is None or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                says = ['is missing' if x is None else f'is {x.dtype} {x.shape}' for x in (theirs, ours)]
                raise UserError(
                    f'the checkpoint of step {step} in {self._folder} does not fit this version of td_jax: '
                    f'{name} {says[0]} there and {says[1]} here. Choose another --workdir.'
                )
        targets = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None))
            for name, leaf in wanted.items()
        }
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(targets)})
        )[STATE]
        if fingerprint.of_arrays(arrays) != facts.pop('fingerprints'):
            raise Unreadable('its content is not what was saved')
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [arrays[name] for name in wanted]), facts

    def _set_aside(self, step):
        """Moves an unreadable checkpoint out of the way of later saves of the same step."""
        with contextlib.suppress(Exception):
            self._manager.close()
        processes.from_main(lambda: _move_away(self._folder, step))
        self._manager = self._open()

    def close(self):
        """Waits for the last save and releases what Orbax holds."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            # Every save was waited for; what failed was told then, and Orbax says it again.
            with contextlib.suppress(Exception):
                self._manager.close()


def _move_away(folder, step):
    target = folder / f'unreadable-{step}'
    for attempt in range(1, 1000):
        if not target.exists():
            break
        target = folder / f'unreadable-{step}-{attempt}'
    try:
        (folder / str(step)).rename(target)
    # The client of a bucket has errors of its own.
    except Exception as error:
        raise UserError(f'{folder / str(step)} cannot be moved to {target}: {_reason(error)}.') from error


@jax.jit
def _copies(arrays):
    return jax.tree.map(jnp.copy, arrays)


def _copied(arrays):
    """Arrays that nobody else will overwrite: on a CPU, what Orbax takes for its copy shares their memory."""
    placed = {name: array for name, array in arrays.items() if isinstance(array, jax.Array)}
    copied = {name: np.array(array) for name, array in arrays.items() if name not in placed}
    if any(device.platform == 'cpu' for array in placed.values() for device in array.sharding.device_set):
        placed = _copies(placed)
    return {name: placed.get(name, copied.get(name)) for name in arrays}


# --- Reading ---------------------------------------------------------------------------------------


def _alone():
    """Of Orbax: this process waits for no other."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def _described(folder, step):
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    found = handler.metadata(folder / str(step) / STATE).tree
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in found.items()}


def _restore_args(wanted):
    return {
        name: ocp.RestoreArgs(restore_type=np.ndarray)
        if target.sharding is None
        else ocp.ArrayRestoreArgs(sharding=target.sharding, global_shape=target.shape, dtype=target.dtype)
        for name, target in wanted.items()
    }


@contextlib.contextmanager
def _reading(folder, step):
    """Makes an Unreadable with its reason in one line of whatever a damaged file makes others raise.

    Raises:
      Unreadable: instead of it.
      UserError: it cannot be read now, which says nothing of the checkpoint.
    """
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        if _is_of_device(error):
            raise
        if _is_hindrance(error):
            raise UserError(_cannot_be_read(folder, step, _reason(error))) from error
        raise Unreadable(f'the checkpoint of step {step} in {folder}: {_reason(error)}') from error


# --- Damage ----------------------------------------------------------------------------------------

# Of a file that is there and whole: who asks for it may not have it, or gets no memory, files or answer.
_HINDRANCES = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH),
)
# The same in the words of TensorStore, in front of a colon.
_STATUS = re.compile(
    r'\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b'
)


def _is_of_device(error) -> bool:
    """Whether a device failed, or a process that has a part in a computation, and not the reading."""
    return any(
        isinstance(part, jax.errors.JaxRuntimeError) or 'Unable to initialize backend' in str(part)
        for part in _chain(error)
    )


def _is_hindrance(error) -> bool:
    """Whether an error of reading says nothing of what is read."""
    for part in _chain(error):
        if isinstance(part, (MemoryError, ConnectionError, TimeoutError)):
            return True
        if isinstance(part, OSError) and part.errno in _HINDRANCES:
            return True
        said = str(part)
        if _STATUS.search(said) or any(os.strerror(code) in said for code in _HINDRANCES):
            return True
    return False


def _cannot_be_read(folder, step, why):
    return f'the checkpoint of step {step} in {folder} cannot be read now, and is left as it is: {why}.'


def _check(folder):
    """Raises an Unreadable where this process's share of a checkpoint's files is damaged."""
    try:
        damage = _damage(folder)
    except UserError as error:
        if _is_hindrance(error):
            raise error.__cause__ from None
        # A file of digests that is none.
        raise Unreadable(str(error)) from error
    if damage:
        raise Unreadable(damage)


def _damage(folder) -> str | None:
    """What is wrong with this process's share of a checkpoint's files; None where nothing is.

    Found before Orbax reads them. Of a checkpoint without digests, where a run was killed before it wrote
    them, nothing is known.
    """
    digests = {}
    for path in folder.glob(DIGESTS.format(process='*')):
        digests |= workdir.read_json(path) or {}
    share = _share(digests)
    now = _digests(folder, share)
    damaged = next((name for name in share if now.get(name) != digests[name]), None)
    return None if damaged is None else f'{damaged} is not as it was saved'


def _first(damage):
    """The damage that the first of the processes found that found any; None where none did."""
    return next(filter(None, processes.from_all(damage)), None)


def _files(folder) -> list[str]:
    """The names of the files that Orbax wrote, which nothing adds to any more."""
    if workdir.is_in_bucket(folder):
        names = _objects(folder)
    else:
        names = [
            os.path.relpath(os.path.join(place, name), folder)
            for place, _, inside in os.walk(folder)
            for name in inside
        ]
    return [name for name in names if name.split('/')[0] in (STATE, FACTS)]


def _share(names) -> list[str]:
    """Every process takes as many."""
    return sorted(names)[jax.process_index() :: jax.process_count()]


def _digests(folder, names) -> dict[str, str]:
    """The digests of those files that are there: SHA-256, or what the bucket itself computed, CRC32C."""
    if workdir.is_in_bucket(folder):
        objects = _objects(folder)
        return {
            name: f'{objects[name]["size"]} {objects[name]["crc32c"]}' for name in names if name in objects
        }
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError), open(folder / name, 'rb') as file:
            found[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return found


def _objects(folder) -> dict[str, dict]:
    """{name: what the bucket says of it} of all objects under a path."""
    system, root = fsspec.url_to_fs(str(folder))
    return {name.removeprefix(f'{root}/'): facts for name, facts in system.find(root, detail=True).items()}


# --- What Orbax says -------------------------------------------------------------------------------


def _reason(error) -> str:
    """Why a save or a restore failed, in one line; of the long chains of TensorStore what the system said."""
    text = ' '.join(str(part) for part in _chain(error))
    codes = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, *_HINDRANCES
    said = next((os.strerror(code) for code in codes if os.strerror(code) in text), None)
    return said or reason(error)


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
