"""How often a run is started again without getting on, so that no launcher starts it for ever.

A process that has lost another one ends with CALL_AGAIN, and a launcher then calls the run again, as often as
it takes. What loses a process in every start, such as one that needs more memory than there is, has no end.
"""

import contextlib
import json
import os

from etils import epath

from td_jax.devices import processes
from td_jax.errors import UserError
from td_jax.files import checkpoints, workdir
from td_jax.training import finished

# Starts after the first that a run gets without a new checkpoint in between.
MOST = 3
# In a workdir while a run is under way, and after one that was lost.
RESTARTS = 'restarts.json'


@contextlib.contextmanager
def counted(folder: epath.Path, is_launched: bool):
    """Counts a start of the run in a workdir, until the block ends otherwise than by the loss of a process.

    Args:
      folder: the workdir.
      is_launched: whether a launcher started this process, and may do so again; else nothing is counted.

    Raises:
      UserError: in all processes, the run was started again MOST times without a new checkpoint in between.
    """
    if not is_launched:
        yield
        return
    made = processes.from_main(lambda: _begin(folder))
    try:
        yield
    except BaseException as error:
        if not processes.is_loss(error):
            _end(folder, made)
        raise
    _end(folder, made)


def _begin(folder):
    """Counts a start; -> the folders that were made for it, the innermost first."""
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
    made = []
    if not workdir.is_in_bucket(folder):
        made = [str(place) for place in (folder, *folder.parents) if not place.exists()]
        workdir.make_folder('workdir', folder)
    workdir.write(path, json.dumps({'steps': steps, 'starts': starts + 1}) + '\n')
    return made


def _newest_steps(folder):
    """The newest checkpoint of the teacher that is trained for a run, and of its students; -1 for none."""
    places = folder / finished.TEACHER, folder
    return [max(checkpoints.steps(place / finished.CHECKPOINTS), default=-1) for place in places]


def _end(folder, made):
    """Forgets what was counted, and leaves no folder behind in which nothing came to be."""
    if not processes.is_main():
        return
    # The client of a bucket has errors of its own; and how the run ended says more.
    with contextlib.suppress(Exception):
        (folder / RESTARTS).unlink(missing_ok=True)
        for place in made:
            os.rmdir(place)
