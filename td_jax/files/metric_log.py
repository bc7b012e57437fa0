"""Metrics on disk: metrics.jsonl and TensorBoard events, which hold the same values; trackers get them, too.

Files in a bucket cannot be appended to. For a bucket, both files grow in a folder of this machine and are
copied whole at every flush: at each save of a run and at its end.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping

from etils import epath

from td_jax.errors import InUse, UserError, failure_as_user_error
from td_jax.files import trackers
from td_jax.files import workdir as workdir_lib

FILE = 'metrics.jsonl'
EVENTS = 'events.out.tfevents.*'


def _failures(workdir):
    """The context that turns a failure of the file system, the bucket or TensorFlow into a UserError."""
    return failure_as_user_error(f'the metrics in {workdir} cannot be written')


class Log:
    """Writes the scalars of a run.

    Every method raises a UserError where the disk is full or the folder cannot be written.
    """

    def __init__(self, workdir: epath.Path, lines: list[dict], tracking=None, hparams=None):
        """Starts files that hold some lines, in place of existing ones; arguments as in open_log."""
        # Imports TensorFlow, which takes seconds and which only what writes metrics needs.
        from clu import metric_writers

        self._workdir, self._resources = workdir, contextlib.ExitStack()
        with _failures(workdir), contextlib.ExitStack() as resources:
            self._is_copied = workdir_lib.is_in_bucket(workdir)
            folder = resources.enter_context(tempfile.TemporaryDirectory()) if self._is_copied else workdir
            self._folder = epath.Path(folder)
            for place in {workdir, self._folder}:
                workdir_lib.write(place / FILE, ''.join(json.dumps(line) + '\n' for line in lines))
                for path in place.glob(EVENTS):
                    path.unlink()
            self._file = resources.enter_context(open(self._folder / FILE, 'a'))
            self._events = metric_writers.SummaryWriter(str(self._folder))
            resources.callback(self._events.close)
            for line in lines:
                self._write_events(line)
            self._trackers = []
            if tracking and trackers.read_projects(tracking):
                from td_jax.files.tracker_writer import open_writers

                self._trackers = open_writers(tracking, workdir=workdir, lines=lines, hparams=hparams or {})
            for tracker in self._trackers:
                resources.callback(tracker.close)
            self._resources = resources.pop_all()

    def write(self, step: int, scalars: dict):
        """Appends {"step": ..., metric: value, ...} to metrics.jsonl and the scalars to the events."""
        line = {'step': int(step), **{name: float(value) for name, value in scalars.items()}}
        with _failures(self._workdir):
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()
            self._write_events(line)
        for tracker in self._trackers:
            tracker.write_scalars(line['step'], _scalars(line))

    def _write_events(self, line):
        self._events.write_scalars(line['step'], _scalars(line))

    def flush(self):
        """Returns when everything is on disk, or in the bucket."""
        with _failures(self._workdir):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()
            if self._is_copied:
                for path in (self._folder / FILE, *self._folder.glob(EVENTS)):
                    path.copy(self._workdir / path.name, overwrite=True)

    def close(self, error: BaseException | None = None):
        """Flushes and releases the files; ends the runs of trackers, as failed ones after an error.

        A workdir that another process has taken over gets no more lines.
        """
        for tracker in self._trackers:
            tracker.has_failed = error is not None
        with _failures(self._workdir), self._resources:
            if not isinstance(error, InUse):
                self.flush()


@contextlib.contextmanager
def open_log(
    workdir: epath.Path,
    lines: list[dict],
    tracking=None,
    hparams: Mapping[str, object] | None = None,
):
    """Opens a Log that continues after some lines, and closes it in the end.

    metrics.jsonl and the events then hold these lines alone: lines that a killed run wrote after its last
    checkpoint are removed, and lines that never reached its events are restored.

    Args:
      workdir: folder of the run.
      lines: those that `read` returned, up to the step from which the run continues.
      tracking: config.tracking, if trackers are to get the metrics, too.
      hparams: options of the run for them, {dotted key: value}.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    log = Log(workdir, lines, tracking, hparams)
    try:
        yield log
    except BaseException as error:
        # The first error says more than what closing may add.
        with contextlib.suppress(UserError):
            log.close(error)
        raise
    log.close()


def _scalars(line):
    return {name: value for name, value in line.items() if name != 'step'}


def read(workdir: epath.Path) -> list[dict]:
    """Reads the lines of a run's metrics.jsonl, in order; a damaged line is left out.

    Raises:
      UserError: the file is there but cannot be read.
    """
    lines = []
    for line in (workdir_lib.read_text(workdir / FILE) or '').splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get('step'), int)]
