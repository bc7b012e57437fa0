"""A limit on restarts without progress, so that a launcher does not restart a run for ever.

A process that has lost another one ends with CALL_AGAIN, and its launcher then restarts the run. A run that
loses a process at every start, for example for lack of memory, would never end.
"""

import contextlib
import json
import os

from etils import epath

from td_jax.devices import processes
from td_jax.errors import UserError
from td_jax.files import checkpoints, workdir
from td_jax.training import finished

# Restarts that a run gets without a new checkpoint.
MOST = 3
# A file in a workdir while a run is in progress, and after one that lost a process.
RESTARTS = 'restarts.json'


@contextlib.contextmanager
def count_start(folder: epath.Path, is_launched: bool):
    """Counts a start of a run; forgets it if the block ends in any way but the loss of a process.

    Args:
      folder: the workdir.
      is_launched: whether a launcher started this process and may restart it; if not, nothing is counted.

    Raises:
      UserError: the run was restarted MOST times without a new checkpoint; raised in all processes.
    """
    if not is_launched:
        yield
        return
    folders = processes.call_on_main(lambda: _begin(folder))
    try:
        yield
    except BaseException as error:
        if not processes.is_loss(error):
            _end(folder, folders)
        raise
    _end(folder, folders)


def _begin(folder):
    """Counts a start; -> the folders created for it, the innermost first."""
    path, steps = folder / RESTARTS, _newest_steps(folder)
    stored = workdir.read_json(path) or {}
    starts = stored.get('starts') if stored.get('steps') == steps else 0
    if not isinstance(starts, int):
        raise UserError(f'{path} is damaged; delete it.')
    if starts > MOST:
        raise UserError(
            f'{folder} was started {starts} times without a new checkpoint in between, and lost a process '
            f'each time; what the processes printed may say why. Delete {path} to start it again.'
        )
    folders = []
    if not workdir.is_in_bucket(folder):
        folders = [str(place) for place in (folder, *folder.parents) if not place.exists()]
        workdir.make_folder('workdir', folder)
    workdir.write(path, json.dumps({'steps': steps, 'starts': starts + 1}) + '\n')
    return folders


def _newest_steps(folder):
    """The newest steps of the run's own teacher and of its students; -1 for none."""
    places = folder / finished.TEACHER, folder
    return [max(checkpoints.steps(place / finished.CHECKPOINTS), default=-1) for place in places]


def _end(folder, folders):
    """Deletes the count, and the folders created for it if they are empty."""
    if not processes.is_main():
        return
    # A bucket's client has its own exceptions; the error that ended the run is more important.
    with contextlib.suppress(Exception):
        (folder / RESTARTS).unlink(missing_ok=True)
        for place in folders:
            os.rmdir(place)
