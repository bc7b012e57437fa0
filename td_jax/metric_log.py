"""Metrics on disk: metrics.jsonl and TensorBoard events, both through clu's metric writers."""

import json
import os
import pathlib

from clu import metric_writers

FILE = 'metrics.jsonl'


class JsonLinesWriter(metric_writers.MetricWriter):
    """Appends one JSON object a call: {"step": ..., metric: value, ...}."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, 'a')

    def write_scalars(self, step, scalars):
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({'step': int(step), **values}) + '\n')
        self._file.flush()

    def write_hparams(self, hparams):
        """Nothing: config.json has them."""

    def _not_scalars(self, *args, **kwargs):
        raise NotImplementedError('metrics.jsonl holds scalars.')

    write_summaries = write_images = write_videos = write_audios = _not_scalars
    write_texts = write_histograms = write_pointcloud = _not_scalars

    def flush(self):
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self):
        self.flush()
        self._file.close()


def open_writer(workdir: pathlib.Path) -> metric_writers.MetricWriter:
    """A writer of both kinds for a run; close it."""
    return metric_writers.MultiWriter(
        [JsonLinesWriter(workdir / FILE), metric_writers.SummaryWriter(str(workdir))]
    )


def read(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, in order; a last line that was cut off is left out."""
    lines = []
    try:
        text = (workdir / FILE).read_text()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def without_steps_after(workdir: pathlib.Path, step: int) -> str:
    """The text of metrics.jsonl up to a step, for a run that continues from there."""
    kept = [line for line in read(workdir) if line['step'] <= step]
    return ''.join(json.dumps(line) + '\n' for line in kept)
