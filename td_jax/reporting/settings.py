"""Which runs are compared with which: runs that differ in seeds are one row, rows on one task one setting.

A setting is the data, how it is split and evaluated, and the student's architecture. Where a data set has
changed between runs, they are in settings of their own. What trains a student (method, optimizer, dropout,
where it starts) tells the rows apart.
"""

import json
from typing import NamedTuple

from td_jax.config import identity
from td_jax.reporting.runs import FINISHED, Run, inside

SCRATCH = 'supervised'
# What may differ between runs of one row.
SEEDS = ('seed', 'num_seeds', 'seed_step', 'teacher.seed')
# What a setting is, by what keys start with, and those among them that train a student.
_OF_SETTING = ('dataset.', 'model.')
_OF_TRAINING = ('model.initial', 'model.dropout')
# In addition to the keys of a config: the digest of the data, where runs of one config had different data.
CONTENT = 'dataset.content'
# Keys that a label or a title names at most.
_MOST_KEYS = 3


class Row(NamedTuple):
    """Runs that differ in seeds alone."""

    label: str
    runs: tuple[Run, ...]
    read: dict  # {dotted key: value} of what makes them what they are, without SEEDS

    @property
    def method(self) -> str:
        """Of its runs."""
        return self.runs[0].method

    @property
    def finished(self) -> list[Run]:
        """Those of its runs that are."""
        return [run for run in self.runs if run.state == FINISHED]

    def values(self) -> dict[int, float]:
        """{seed: value} of the runs that are finished, in the order of the seeds."""
        found = {
            seed: value
            for run in self.finished
            for seed, value in zip(run.result['seeds'], run.result['values'], strict=True)
        }
        return dict(sorted(found.items()))

    def teachers(self) -> dict[int, str | None]:
        """{seed: fingerprint of its teacher}, in the order of the seeds."""
        found = {
            seed: run.result['teacher_fingerprint'] for run in self.finished for seed in run.result['seeds']
        }
        return dict(sorted(found.items()))


class Setting(NamedTuple):
    """Rows that may be compared."""

    title: str
    rows: tuple[Row, ...]  # those from scratch first
    metric: str | None  # None where no run is finished
    split: str


class Baseline(NamedTuple):
    """The row from scratch that a row is compared with."""

    row: Row | None
    reason: str  # why there is none, '' if there is


def read_keys(run: Run) -> dict:
    """{dotted key: value} of what makes a run what it is; of a config that td_jax does not know, all."""
    if run.config is not None:
        return identity.identity(run.config)
    return {key: value for key, value in run.stored.items() if key not in identity.WITHOUT_EFFECT}


def make(runs, teaching) -> list[Setting]:
    """The settings of some runs.

    Args:
      runs: those with a config are in a setting, others are not.
      teaching: the names of those that teach. They are in a setting only together with a run that does not,
        and never if they lie in their student's workdir.
    """
    groups, of_students = {}, {inside(run) for run in runs}
    for run in runs:
        if not run.stored or run.name in of_students:
            continue
        read = read_keys(run)
        groups.setdefault(_text(_of_setting(read)), []).append((run, read))
    groups = {
        key: group for key, group in groups.items() if any(run.name not in teaching for run, _ in group)
    }
    groups = [part for group in groups.values() for part in _by_data(group)]
    made = [_setting(group) for group in groups]
    return [setting._replace(title=title) for setting, title in zip(made, _titles(made, groups), strict=True)]


def _by_data(group):
    """Cuts runs of one setting apart where they were trained on different data."""
    if len({run.data for run, _ in group if run.data}) <= 1:
        return [group]
    parts = {}
    for run, read in group:
        parts.setdefault(run.data, []).append((run, {**read, CONTENT: run.data or 'unknown'}))
    return list(parts.values())


def _of_setting(read):
    return {
        key: value for key, value in read.items() if key.startswith(_OF_SETTING) and key not in _OF_TRAINING
    }


def _text(read):
    return json.dumps(read, sort_keys=True, default=str)


def _setting(group):
    rows = []
    for run, read in group:
        of_row = {key: value for key, value in read.items() if key not in SEEDS}
        # Such a teacher is known by its parameters alone.
        if run.stored.get('teacher.pretrained') and run.result:
            of_row['teacher.pretrained'] = run.result['teacher_fingerprint']
        for i, row in enumerate(rows):
            if row.read == of_row and _joins(run, row):
                rows[i] = row._replace(runs=(*row.runs, run))
                break
        else:
            rows.append(Row('', (run,), of_row))
    rows.sort(key=lambda row: row.method != SCRATCH)
    labels = _labels(rows)
    rows = [row._replace(label=label) for row, label in zip(rows, labels, strict=True)]
    metrics = {run.result['metric'] for row in rows for run in row.finished}
    split = rows[0].runs[0].stored.get('dataset.split', '')
    return Setting('', tuple(rows), min(metrics, default=None), str(split))


def _joins(run, row):
    """Whether a run has other seeds than a row, and the same teacher for the same seed of a teacher."""
    if run.result is None:
        return True
    fingerprint, seed = run.result['teacher_fingerprint'], run.stored.get('teacher.seed')
    return all(
        not set(run.result['seeds']) & set(other.result['seeds'])
        and (other.stored.get('teacher.seed') != seed or other.result['teacher_fingerprint'] == fingerprint)
        for other in row.finished
    )


def differing(dicts) -> list[str]:
    """The keys that have another value in one of some dicts than in another, among those that have it."""
    found = {}
    for read in dicts:
        for key, value in read.items():
            found.setdefault(key, set()).add(_text(value))
    return sorted(key for key, values in found.items() if len(values) > 1)


def said(value) -> str:
    """A value of a config for a person."""
    if isinstance(value, list):
        return ', '.join(map(said, value)) or '()'
    return 'none' if value in (None, '') else str(value)


def _labels(rows):
    """What each row is called: its method, and what tells it from others of this method."""
    labels = []
    for row in rows:
        alike = [other.read for other in rows if other.method == row.method]
        keys = [key for key in differing(alike) if key in row.read]
        if len(alike) == 1:
            labels.append(row.method)
        elif 0 < len(keys) <= _MOST_KEYS:
            told = [f'{key.removeprefix(f"{row.method}.")} {said(row.read[key])}' for key in keys]
            labels.append(f'{row.method}, {", ".join(told)}')
        else:
            labels.append(f'{row.method} ({row.runs[0].name})')
    return [
        label if labels.count(label) == 1 else f'{label} ({row.runs[0].name})'
        for row, label in zip(rows, labels, strict=True)
    ]


def _titles(settings, groups):
    """What each setting is called: its data and metric, and what tells it from others of these."""
    plain = []
    for setting in settings:
        done = [run for row in setting.rows for run in row.finished]
        first = setting.rows[0].runs[0]
        data = done[0].result['dataset'] if done else said(first.stored.get('dataset.name'))
        plain.append(f'{data}, {setting.split} {setting.metric or ""}'.rstrip())
    parts = [_of_setting(group[0][1]) for group in groups]
    titles = []
    for title, part in zip(plain, parts, strict=True):
        alike = [other for name, other in zip(plain, parts, strict=True) if name == title]
        keys = [key for key in differing(alike) if key in part]
        more = ', …' if len(keys) > _MOST_KEYS else ''
        told = ', '.join(f'{key} {said(part[key])}' for key in keys[:_MOST_KEYS])
        titles.append(f'{title}; {told}{more}' if told else title)
    return titles


def baseline(row: Row, rows) -> Baseline:
    """The run without distillation of a row's setting: the one that differs from it in the fewest options.

    Args:
      row: of the setting.
      rows: all of the setting.
    """
    if row.method == SCRATCH:
        return Baseline(None, '')
    near = {}
    for other in rows:
        if other.method == SCRATCH and other.finished:
            count = len([key for key in differing([row.read, other.read]) if key != 'method'])
            near.setdefault(count, []).append(other)
    if not near:
        return Baseline(None, 'no finished run without distillation')
    nearest = near[min(near)]
    if len(nearest) > 1:
        return Baseline(None, f'{len(nearest)} runs without distillation are equally near')
    return Baseline(nearest[0], '')
