"""Saves a training state with Orbax, every process its part, and restores the newest one that can be read.

A checkpoint is one of Orbax, STEP/state and STEP/facts, in a folder or a bucket, and Orbax alone can read it.
Digests of its files lie next to it and reveal damage before anything of it is used. The arrays that were read
are then compared with the fingerprints of those that were saved.
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
# In each checkpoint, from each process that saved it, the digests of a share of its files.
DIGESTS = 'digests-{process}.json'
# The two parts of a checkpoint.
STATE, METADATA = 'state', 'facts'


class Unreadable(Exception):
    """A checkpoint that is missing, damaged, or not of the names and shapes that were asked for."""


def holds_any(folder: epath.Path) -> bool:
    """Whether a folder holds a checkpoint, readable or not; one that was never whole does not count."""
    return folder.exists() and any('.orbax-checkpoint-tmp' not in path.name for path in folder.iterdir())


def read_shapes(folder: epath.Path, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Reads the names, shapes and types of a checkpoint's arrays, not their values.

    Raises:
      Unreadable: there is no such checkpoint, or it is damaged.
    """
    with _errors_as_unreadable(folder, step):
        return _read_shapes(folder, step)


def read(folder: epath.Path, step: int, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict:
    """Reads some arrays of a checkpoint, whatever devices and processes it was saved with.

    Each of several processes reads what it needs and waits for no other.

    Args:
      folder: of the checkpoints.
      step: of one that is whole.
      shapes: {name: shape and type}, some of those that `read_shapes` returns. With a sharding, the result is
        a jax.Array, each shard read straight to its device; without, a numpy array.

    Raises:
      Unreadable: the checkpoint is missing or damaged.
    """
    with _errors_as_unreadable(folder, step):
        _check_files(folder / str(step))
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_single_process_options())
        with contextlib.closing(
            ocp.Checkpointer(handler, multiprocessing_options=_single_process_options())
        ) as reader:
            arrays = reader.restore(
                folder / str(step) / STATE,
                args=ocp.args.PyTreeRestore(
                    item=dict(shapes), restore_args=_restore_args(shapes), partial_restore=True
                ),
            )
        return {name: arrays[name] for name in shapes}


def steps(folder: epath.Path) -> list[int]:
    """The steps of a folder's checkpoints, in order, whether or not they can be read."""
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class Checkpoints:
    """The checkpoints of one run; each holds a state and metadata as JSON.

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

    def save(self, step: int, state, metadata: dict):
        """Starts to write a checkpoint; older ones are deleted only when this one is whole.

        Waits for the previous save, and until the state is copied: then its arrays may change.

        Args:
          step: number of finished training steps.
          state: a tree of arrays; it is stored flat, by name.
          metadata: values that JSON can hold.

        Raises:
          UserError: this or the previous checkpoint could not be written; older ones are as they were.
        """
        self.wait()
        arrays = _copy_arrays(fingerprint.flatten_by_name(state))
        metadata = {**metadata, 'fingerprints': fingerprint.of_arrays(arrays)}
        with self._errors_as_user_error(step):
            is_saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{STATE: ocp.args.StandardSave(arrays), METADATA: ocp.args.JsonSave(metadata)}
                ),
                force=True,
            )
        if not is_saved:
            raise UserError(f'Orbax refused to write the checkpoint of step {step} to {self._folder}.')
        self._pending = self._worker.submit(self._finish, step)

    def wait(self):
        """Returns when the last save is on disk, whole.

        Raises:
          UserError: it could not be written; the checkpoints before it are as they were.
        """
        # Raised once: closing after a failed save is no second failure.
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _finish(self, step):
        """Waits until every process has written, then writes the digests of this one's share."""
        with self._errors_as_user_error(step):
            self._manager.wait_until_finished()
            folder = self._folder / str(step)
            path = folder / DIGESTS.format(process=jax.process_index())
            workdir.write(
                path, json.dumps(_compute_digests(folder, _own_share(_list_files(folder))), indent=2) + '\n'
            )

    @contextlib.contextmanager
    def _errors_as_user_error(self, step):
        """Turns any error of Orbax, TensorStore and the file system into a one-line UserError."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f'the checkpoint of step {step} could not be written to {self._folder}: {_explain(error)}'
            ) from error

    def restore(self, like, check=lambda metadata: None):
        """Restores the newest readable checkpoint to the devices of `like`.

        A checkpoint that is damaged, or differs from what was saved, is moved aside with a warning.

        Args:
          like: a tree of placed arrays, or of ShapeDtypeStructs with a sharding.
          check: takes the metadata; refuses the checkpoint with a UserError before its arrays are read.

        Returns:
          (step, a tree like `like`, metadata), or None if no checkpoint is readable

        Raises:
          UserError: raised by `check`; the checkpoint has other names or shapes than `like`; or it cannot be
            read now, though it may be undamaged.
        """
        for step in processes.call_on_main(lambda: sorted(self._manager.all_steps(), reverse=True)):
            damage, result = self._attempt(step, lambda step=step: _check_files(self._folder / str(step)))
            if damage is None:
                damage, result = self._attempt(step, lambda step=step: self._restore(step, like, check))
            if damage is None:
                return step, *result
            if processes.is_main():
                _log.warning('Checkpoint %d in %s is skipped: %s', step, self._folder, damage)
            self._set_aside(step)
        return None

    def _attempt(self, step, read):
        """Tries to read: (None, result of `read()`), or (the damage in any of the processes, None).

        Raises:
          UserError: raised by `read`, or in all processes where one of them cannot read now.
        """
        damage, access_error, value = None, None, None
        try:
            value = read()
        except UserError:
            raise
        # Whatever a damaged file makes Orbax or the file system raise.
        except Exception as error:
            if _is_of_device(error):
                raise
            if _is_access_error(error):
                access_error = _explain(error)
            else:
                damage = _explain(error)
        access_error, damage = _first_of_processes(access_error), _first_of_processes(damage)
        if access_error:
            raise UserError(_access_message(self._folder, step, access_error))
        return damage, value

    def _restore(self, step, like, check):
        arguments = ocp.args.Composite(**{METADATA: ocp.args.JsonRestore()})
        metadata = self._manager.restore(step, args=arguments)[METADATA]
        check(metadata)
        leaves = fingerprint.flatten_by_name(like)
        stored_shapes = _read_shapes(self._folder, step)
        for name in sorted(leaves.keys() | stored_shapes.keys()):
            ours, theirs = (shapes.get(name) for shapes in (leaves, stored_shapes))
            if ours is None or theirs is None or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                descriptions = [
                    'is missing' if x is None else f'is {x.dtype} {x.shape}' for x in (theirs, ours)
                ]
                raise UserError(
                    f'the checkpoint of step {step} in {self._folder} does not fit this version of td_jax: '
                    f'{name} {descriptions[0]} there and {descriptions[1]} here. Choose another --workdir.'
                )
        targets = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None))
            for name, leaf in leaves.items()
        }
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(targets)})
        )[STATE]
        if fingerprint.of_arrays(arrays) != metadata.pop('fingerprints'):
            raise Unreadable('its content is not what was saved')
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [arrays[name] for name in leaves]), metadata

    def _set_aside(self, step):
        """Moves an unreadable checkpoint out of the way of later saves of the same step."""
        with contextlib.suppress(Exception):
            self._manager.close()
        processes.call_on_main(lambda: _move_away(self._folder, step))
        self._manager = self._open()

    def close(self):
        """Waits for the last save and releases what Orbax holds."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            # Every save was waited for; its failure was raised then, and Orbax raises it again.
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
        raise UserError(f'{folder / str(step)} cannot be moved to {target}: {_explain(error)}.') from error


@jax.jit
def _copy_on_device(arrays):
    return jax.tree.map(jnp.copy, arrays)


def _copy_arrays(arrays):
    """Copies arrays that may be overwritten: on a CPU, the copy that Orbax makes shares their memory."""
    device_arrays = {name: array for name, array in arrays.items() if isinstance(array, jax.Array)}
    host_copies = {name: np.array(array) for name, array in arrays.items() if name not in device_arrays}
    if any(
        device.platform == 'cpu' for array in device_arrays.values() for device in array.sharding.device_set
    ):
        device_arrays = _copy_on_device(device_arrays)
    return {name: device_arrays.get(name, host_copies.get(name)) for name in arrays}


# --- Reading ---------------------------------------------------------------------------------------


def _single_process_options():
    """Options of Orbax by which this process waits for no other."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def _read_shapes(folder, step):
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_single_process_options())
    tree = handler.metadata(folder / str(step) / STATE).tree
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in tree.items()}


def _restore_args(shapes):
    return {
        name: ocp.RestoreArgs(restore_type=np.ndarray)
        if target.sharding is None
        else ocp.ArrayRestoreArgs(sharding=target.sharding, global_shape=target.shape, dtype=target.dtype)
        for name, target in shapes.items()
    }


@contextlib.contextmanager
def _errors_as_unreadable(folder, step):
    """Turns any error that a damaged file causes into an Unreadable with a one-line reason.

    Raises:
      Unreadable: in place of the error.
      UserError: the checkpoint cannot be read now, though it may be undamaged.
    """
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        if _is_of_device(error):
            raise
        if _is_access_error(error):
            raise UserError(_access_message(folder, step, _explain(error))) from error
        raise Unreadable(f'the checkpoint of step {step} in {folder}: {_explain(error)}') from error


# --- Damage ----------------------------------------------------------------------------------------

# Errors of reading an undamaged file: no permission, or no memory, file handles or answer.
_ACCESS_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH),
)
# The same in the words of TensorStore, in front of a colon.
_STATUS = re.compile(
    r'\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b'
)


def _is_of_device(error) -> bool:
    """Whether a device or another process of a computation failed, and not the reading."""
    return any(
        isinstance(part, jax.errors.JaxRuntimeError) or 'Unable to initialize backend' in str(part)
        for part in _error_chain(error)
    )


def _is_access_error(error) -> bool:
    """Whether reading failed for want of permission, memory or an answer, and not by damage."""
    for part in _error_chain(error):
        if isinstance(part, (MemoryError, ConnectionError, TimeoutError)):
            return True
        if isinstance(part, OSError) and part.errno in _ACCESS_ERRORS:
            return True
        message = str(part)
        if _STATUS.search(message) or any(os.strerror(code) in message for code in _ACCESS_ERRORS):
            return True
    return False


def _access_message(folder, step, why):
    return f'the checkpoint of step {step} in {folder} cannot be read now, and is left as it is: {why}.'


def _check_files(folder):
    """Raises an Unreadable where this process's share of a checkpoint's files is damaged."""
    try:
        damage = _find_damage(folder)
    except UserError as error:
        if _is_access_error(error):
            raise error.__cause__ from None
        # The file of digests is damaged itself.
        raise Unreadable(str(error)) from error
    if damage:
        raise Unreadable(damage)


def _find_damage(folder) -> str | None:
    """Finds damage in this process's share of a checkpoint's files before Orbax reads them, or None.

    A checkpoint without digests, whose run was killed before it wrote them, counts as undamaged.
    """
    digests = {}
    for path in folder.glob(DIGESTS.format(process='*')):
        digests |= workdir.read_json(path) or {}
    share = _own_share(digests)
    now = _compute_digests(folder, share)
    damaged = next((name for name in share if now.get(name) != digests[name]), None)
    return None if damaged is None else f'{damaged} is not as it was saved'


def _first_of_processes(damage):
    """The damage that the first process with any found; None where no process found any."""
    return next(filter(None, processes.gather(damage)), None)


def _list_files(folder) -> list[str]:
    """Lists the files that Orbax wrote; no others are added to them later."""
    if workdir.is_in_bucket(folder):
        names = _list_objects(folder)
    else:
        names = [
            os.path.relpath(os.path.join(place, name), folder)
            for place, _, inside in os.walk(folder)
            for name in inside
        ]
    return [name for name in names if name.split('/')[0] in (STATE, METADATA)]


def _own_share(names) -> list[str]:
    """The names of this process's share; all shares are equally large."""
    return sorted(names)[jax.process_index() :: jax.process_count()]


def _compute_digests(folder, names) -> dict[str, str]:
    """Computes digests of the files that exist: SHA-256, or CRC32C as the bucket computed it."""
    if workdir.is_in_bucket(folder):
        objects = _list_objects(folder)
        return {
            name: f'{objects[name]["size"]} {objects[name]["crc32c"]}' for name in names if name in objects
        }
    digests = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError), open(folder / name, 'rb') as file:
            digests[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return digests


def _list_objects(folder) -> dict[str, dict]:
    """Lists all objects under a path: {name: its metadata in the bucket}."""
    system, root = fsspec.url_to_fs(str(folder))
    return {name.removeprefix(f'{root}/'): info for name, info in system.find(root, detail=True).items()}


# --- Errors of Orbax -------------------------------------------------------------------------------


def _explain(error) -> str:
    """Explains a failed save or restore in one line; of a chain of errors, by the message of the system."""
    text = ' '.join(str(part) for part in _error_chain(error))
    codes = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, *_ACCESS_ERRORS
    system_message = next((os.strerror(code) for code in codes if os.strerror(code) in text), None)
    return system_message or reason(error)


def _error_chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
