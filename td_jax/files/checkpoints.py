"""Saves a training state with Orbax and restores the newest one that can be read."""

import concurrent.futures
import errno
import hashlib
import json
import logging
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from td_jax.errors import UserError
from td_jax.files import workdir

KEEP = 2
# In each checkpoint: the SHA-256 of every file that Orbax wrote.
DIGESTS = 'digests.json'


def named(tree) -> dict[str, np.ndarray]:
    """{path joined by /: array} of a tree's leaves, copied to the host."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # Copied: on CPU an array may share its buffer with the one that the next step is given to overwrite.
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.array(leaf) for path, leaf in leaves}


def rebuilt(like, arrays: dict[str, np.ndarray]):
    """A tree of the structure of `like`, its leaves looked up by name.

    Raises:
      ValueError: a leaf is missing or has another shape; names it.
    """

    def look_up(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        found = arrays.get(name)
        if found is None or found.shape != leaf.shape:
            has = 'is missing' if found is None else f'has shape {found.shape}'
            raise ValueError(f'{name} {has}; expected {leaf.shape}')
        return jnp.asarray(found)

    return jax.tree_util.tree_map_with_path(look_up, like)


def fingerprint(tree) -> str:
    """SHA-256 over the names, types, shapes and bytes of a tree's arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(named(tree).items()):
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def holds_any(folder: pathlib.Path) -> bool:
    """Whether a folder of checkpoints holds one, readable or not; what was never whole does not count."""
    return folder.is_dir() and any('.orbax-checkpoint-tmp' not in path.name for path in folder.iterdir())


def _is_no_failure_of_orbax(record) -> bool:
    """A filter of log records: drops what Orbax warns of, and failures in its threads, raised too."""
    return not (record.levelno >= logging.WARNING and '/orbax/' in record.pathname)


def _reason(error) -> str:
    """Why a save failed, in one line; of the long chains of TensorStore what the system said."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    codes = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO
    return next((os.strerror(code) for code in codes if os.strerror(code) in str(error)), text[:300])


def _digests(folder: pathlib.Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob('*'):
        if path.is_file():
            with path.open('rb') as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, 'sha256').hexdigest()
    return found


class Checkpoints:
    """The checkpoints of one run; each holds a state and a few facts about it as JSON."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        logging.getLogger('absl').addFilter(_is_no_failure_of_orbax)
        # One save at a time, beside training.
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
        self._pending = None
        self._manager = self._open()

    def _open(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEEP,
                create=False,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                # This process alone: others of the run have nothing to write, so nobody waits for them.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=jax.process_index(), active_processes={jax.process_index()}
                ),
            ),
        )

    def save(self, step: int, state, facts: dict):
        """Starts to write a checkpoint; older ones go only when this one is whole.

        Waits for the save before it. The arrays are copied first, so that they may change at once.

        Args:
          step: number of finished training steps.
          state: a tree of arrays; it is stored flat, by name.
          facts: what JSON can hold.

        Raises:
          UserError: the one before could not be written; those before it are as they were.
        """
        self.wait()
        self._pending = self._worker.submit(self._write, step, named(state), facts)

    def wait(self):
        """Returns when the last save is on disk, whole.

        Raises:
          UserError: it could not be written; the checkpoints before it are as they were.
        """
        # Told once: closing after a save that failed is no second failure.
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, step, state, facts):
        facts = {**facts, 'fingerprint': fingerprint(state)}
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)),
                force=True,
            )
            self._manager.wait_until_finished()
        except Exception as error:
            raise UserError(
                f'the checkpoint of step {step} could not be written to {self._folder}: {_reason(error)}'
            ) from error
        if not saved:
            raise UserError(f'Orbax refused to write the checkpoint of step {step} to {self._folder}.')
        folder = self._folder / str(step)
        workdir.write(folder / DIGESTS, json.dumps(_digests(folder), indent=2) + '\n')

    def restore(self):
        """The newest readable checkpoint.

        One that cannot be read, or whose content is not what was saved, is set aside with a warning.

        Returns:
          (step, arrays by name as `rebuilt` reads them, facts), or None if no checkpoint is readable.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                self._check_files(step)
                loaded = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore()),
                )
                arrays = {name: np.asarray(array) for name, array in loaded.state.items()}
                if fingerprint(arrays) != loaded.facts['fingerprint']:
                    raise ValueError('its content is not what was saved')
                return step, arrays, loaded.facts
            # Whatever a damaged file makes Orbax or the file system raise.
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logging.warning('Checkpoint %d in %s is skipped: %s', step, self._folder, reason[:300])
                self._set_aside(step)
        return None

    def _check_files(self, step):
        """Raises for a damaged file before Orbax reads it, whose threads would each print a traceback.

        A checkpoint without digests, where a run was killed before it wrote them, is left to Orbax.
        """
        folder = self._folder / str(step)
        now = _digests(folder)
        for name, digest in (workdir.read_json(folder / DIGESTS) or {}).items():
            if now.get(name) != digest:
                raise ValueError(f'{name} is not as it was saved')

    def _set_aside(self, step):
        """Moves an unreadable checkpoint out of the way of later saves of the same step."""
        self._manager.close()
        broken = self._folder / str(step)
        target = self._folder / f'unreadable-{step}'
        for attempt in range(1, 1000):
            if not target.exists():
                break
            target = self._folder / f'unreadable-{step}-{attempt}'
        broken.rename(target)
        self._manager = self._open()

    def close(self):
        """Waits for the last save and releases what Orbax holds."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._manager.close()
