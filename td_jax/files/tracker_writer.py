"""Trackers as writers of CLU. Apart from td_jax.files.trackers, because CLU imports TensorFlow."""

import json
import os
from collections.abc import Mapping

from clu import metric_writers
from etils import epath

from td_jax.devices import processes
from td_jax.errors import reason
from td_jax.files import trackers
from td_jax.files import workdir as workdir_lib


class TrackerWriter(metric_writers.MetricWriter):
    """Writes to an open run of a tracker until that fails: then warns once and writes no more.

    Set `has_failed` before `close` for a run that failed or was interrupted.
    """

    def __init__(self, title: str, connection: trackers.Connection):
        self._title, self._connection = title, connection
        self.has_failed = False

    def write_scalars(self, step: int, scalars: Mapping[str, float]):
        self._call('write_scalars', step, scalars)

    def write_hparams(self, hparams: Mapping[str, object]):
        self._call('write_hparams', hparams)

    def flush(self):
        """Does nothing: trackers send by themselves."""

    def close(self):
        self._call('finish', self.has_failed)

    def _call(self, name, *args):
        if self._connection is None:
            return
        try:
            getattr(self._connection, name)(*args)
        # Each tracker has errors of its own.
        except Exception as error:
            self._connection = None
            _warn(self._title, error)

    def _refuse(self, *args, **kwargs):
        raise NotImplementedError('a run tracks scalars and options only')

    write_summaries = write_images = write_videos = write_audios = write_texts = write_histograms = _refuse


def open_writers(
    tracking, *, workdir: epath.Path, lines: list[dict], hparams: Mapping[str, object]
) -> list[TrackerWriter]:
    """Opens a writer for each tracker of a run; a tracker that cannot be opened is left out, with a warning.

    A run that continues also continues its run of a tracker, unless that was in another project. A new run
    of a tracker starts with the options and with the lines that the log already has.

    Args:
      tracking: config.tracking.
      workdir: folder of the run, whose last two parts name it.
      lines: those of metrics.jsonl from which the run continues; none if it starts anew, also after it was
        stopped before its first checkpoint.
      hparams: options of the run, {dotted key: value}.
    """
    for variable, value in trackers.ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    writers, runs = [], trackers.read_runs(workdir) if lines else {}
    for name, project in trackers.read_projects(tracking).items():
        tracker = trackers.TRACKERS[name]
        try:
            before = runs.get(name, {})
            run = before['run'] if before.get('project') == project else None
            connection = tracker.connect(project=project, workdir=workdir, run=run)
            runs[name] = {'project': project, 'run': connection.run}
            workdir_lib.write(workdir / trackers.FILE, json.dumps(runs, indent=2) + '\n')
        # Each tracker has errors of its own.
        except Exception as error:
            _warn(tracker.title, error)
            continue
        processes.say(f'{tracker.title}: {connection.place}')
        writer = TrackerWriter(tracker.title, connection)
        writers.append(writer)
        if run is None:
            writer.write_hparams(hparams)
            for line in lines:
                writer.write_scalars(line['step'], {key: v for key, v in line.items() if key != 'step'})
    return writers


def _warn(title, error):
    processes.say(f'warning: {title} failed ({reason(error)}); the run continues without it.')
