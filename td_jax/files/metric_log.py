"""Metrics on disk: metrics.jsonl and TensorBoard events, which hold the same values."""

import contextlib
import json
import os
import pathlib

from td_jax.errors import UserError
from td_jax.files import workdir as workdir_lib

FILE = 'metrics.jsonl'
EVENTS = 'events.out.tfevents.*'


@contextlib.contextmanager
def _refusing(workdir):
    """Makes one line for a person of what the file system and TensorFlow raise."""
    try:
        yield
    # TensorFlow has its own errors for a full disk.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'the metrics in {workdir} cannot be written: {reason[:300]}') from error


class Log:
    """Where a run writes its scalars.

    Every method raises a UserError where the disk is full or the folder cannot be written.
    """

    def __init__(self, workdir: pathlib.Path):
        # Imports TensorFlow, which takes seconds and which only what writes metrics needs.
        from clu import metric_writers

        self._workdir = workdir
        with _refusing(workdir):
            self._file = open(workdir / FILE, 'a')
            self._events = metric_writers.SummaryWriter(str(workdir))

    def write(self, step: int, scalars: dict):
        """Appends {"step": ..., metric: value, ...} to metrics.jsonl and the scalars to the events."""
        line = {'step': int(step), **{name: float(value) for name, value in scalars.items()}}
        with _refusing(self._workdir):
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()
        self.write_events(line)

    def write_events(self, line: dict):
        """Adds a line of metrics.jsonl to the events alone."""
        with _refusing(self._workdir):
            self._events.write_scalars(line['step'], {name: v for name, v in line.items() if name != 'step'})

    def flush(self):
        """Returns when everything is on disk."""
        with _refusing(self._workdir):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self):
        """Flushes and releases the files."""
        with _refusing(self._workdir), contextlib.closing(self._file), contextlib.closing(self._events):
            self.flush()


@contextlib.contextmanager
def opened(workdir: pathlib.Path, lines: list[dict]):
    """A Log that goes on after some lines, closed in the end.

    metrics.jsonl and the events then hold these lines and nothing else: what a killed run wrote after its
    last checkpoint goes, and what never reached its events comes back.

    Args:
      workdir: folder of the run.
      lines: what `read` gave, as far as the run goes on from there.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    workdir_lib.write(workdir / FILE, ''.join(json.dumps(line) + '\n' for line in lines))
    with _refusing(workdir):
        for path in workdir.glob(EVENTS):
            path.unlink()
    log = Log(workdir)
    try:
        for line in lines:
            log.write_events(line)
        yield log
    except BaseException:
        # The first error says more than what closing may add.
        with contextlib.suppress(UserError):
            log.close()
        raise
    log.close()


def read(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, in order; one that was cut off or damaged is left out.

    Raises:
      UserError: the file is there but cannot be read.
    """
    try:
        text = (workdir / FILE).read_text(errors='replace')
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f'{workdir / FILE} cannot be read: {error.strerror}.') from error
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get('step'), int)]
