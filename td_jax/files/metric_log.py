"""Metrics on disk: metrics.jsonl and TensorBoard events, which hold the same values.

Nothing in a bucket can be appended to. There both files grow in a folder of this machine, and go to the
bucket whole at every flush: at each save of a run and at its end.
"""

import contextlib
import json
import os
import tempfile

from etils import epath

from td_jax.errors import UserError, reason
from td_jax.files import workdir as workdir_lib

FILE = 'metrics.jsonl'
EVENTS = 'events.out.tfevents.*'


@contextlib.contextmanager
def _refusing(workdir):
    """Makes one line for a person of what the file system, the bucket and TensorFlow raise."""
    try:
        yield
    except UserError:
        raise
    # TensorFlow and the client of a bucket have errors of their own.
    except Exception as error:
        why = reason(error)
        raise UserError(f'the metrics in {workdir} cannot be written: {why}') from error


class Log:
    """Where a run writes its scalars.

    Every method raises a UserError where the disk is full or the folder cannot be written.
    """

    def __init__(self, workdir: epath.Path, lines: list[dict]):
        """Starts files that hold some lines, in the place of those that were there."""
        # Imports TensorFlow, which takes seconds and which only what writes metrics needs.
        from clu import metric_writers

        self._workdir, self._held = workdir, contextlib.ExitStack()
        with _refusing(workdir), contextlib.ExitStack() as held:
            self._is_copied = workdir_lib.is_in_bucket(workdir)
            folder = held.enter_context(tempfile.TemporaryDirectory()) if self._is_copied else workdir
            self._folder = epath.Path(folder)
            for place in {workdir, self._folder}:
                workdir_lib.write(place / FILE, ''.join(json.dumps(line) + '\n' for line in lines))
                for path in place.glob(EVENTS):
                    path.unlink()
            self._file = held.enter_context(open(self._folder / FILE, 'a'))
            self._events = metric_writers.SummaryWriter(str(self._folder))
            held.callback(self._events.close)
            for line in lines:
                self._write_events(line)
            self._held = held.pop_all()

    def write(self, step: int, scalars: dict):
        """Appends {"step": ..., metric: value, ...} to metrics.jsonl and the scalars to the events."""
        line = {'step': int(step), **{name: float(value) for name, value in scalars.items()}}
        with _refusing(self._workdir):
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()
            self._write_events(line)

    def _write_events(self, line):
        self._events.write_scalars(line['step'], {name: v for name, v in line.items() if name != 'step'})

    def flush(self):
        """Returns when everything is on disk, or in the bucket."""
        with _refusing(self._workdir):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()
            if self._is_copied:
                for path in (self._folder / FILE, *self._folder.glob(EVENTS)):
                    path.copy(self._workdir / path.name, overwrite=True)

    def close(self):
        """Flushes and releases the files."""
        with _refusing(self._workdir), self._held:
            self.flush()


@contextlib.contextmanager
def opened(workdir: epath.Path, lines: list[dict]):
    """A Log that goes on after some lines, closed in the end.

    metrics.jsonl and the events then hold these lines and nothing else: what a killed run wrote after its
    last checkpoint goes, and what never reached its events comes back.

    Args:
      workdir: folder of the run.
      lines: what `read` gave, as far as the run goes on from there.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    log = Log(workdir, lines)
    try:
        yield log
    except BaseException:
        # The first error says more than what closing may add.
        with contextlib.suppress(UserError):
            log.close()
        raise
    log.close()


def read(workdir: epath.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, in order; one that was cut off or damaged is left out.

    Raises:
      UserError: the file is there but cannot be read.
    """
    lines = []
    for line in (workdir_lib.read_text(workdir / FILE) or '').splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get('step'), int)]
