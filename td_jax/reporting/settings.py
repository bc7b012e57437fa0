"""Groups runs for comparison: runs that differ only in seeds are a row, rows on one task are a setting.

A setting is defined by the data, their split and evaluation, and the student's architecture. Runs on
different versions of a data set are in different settings. Rows differ in the options of training:
method, optimizer, dropout and initial parameters.
"""

import json
from typing import NamedTuple

from td_jax.config import identity
from td_jax.reporting.runs import FINISHED, Run, inner_teacher_name

SCRATCH = 'supervised'
# The keys that may differ between runs of one row.
SEEDS = ('seed', 'num_seeds', 'seed_step', 'teacher.seed')
# Prefixes of the keys that define a setting, and exceptions, which are options of training.
_OF_SETTING = ('dataset.', 'model.')
_OF_TRAINING = ('model.initial', 'model.dropout', 'dataset.unlabelled')
# An additional key for the digest of the data, if runs with one config had different data.
CONTENT = 'dataset.content'
# The most keys in a label or a title.
_MOST_KEYS = 3


class Row(NamedTuple):
    """Runs that differ only in seeds."""

    label: str
    runs: tuple[Run, ...]
    options: dict  # {dotted key: value} of the options that have an effect, without SEEDS

    @property
    def method(self) -> str:
        """The method of the runs."""
        return self.runs[0].method

    @property
    def finished(self) -> list[Run]:
        """The finished runs."""
        return [run for run in self.runs if run.state == FINISHED]

    def values(self) -> dict[int, float]:
        """{seed: value} of the finished runs, in the order of the seeds."""
        values = {
            seed: value
            for run in self.finished
            for seed, value in zip(run.result['seeds'], run.result['values'], strict=True)
        }
        return dict(sorted(values.items()))

    def teachers(self) -> dict[int, str | None]:
        """{seed: fingerprint of its teacher}, in the order of the seeds."""
        teachers = {
            seed: run.result['teacher_fingerprint'] for run in self.finished for seed in run.result['seeds']
        }
        return dict(sorted(teachers.items()))


class Setting(NamedTuple):
    """Rows that may be compared."""

    title: str
    rows: tuple[Row, ...]  # those without distillation first
    metric: str | None  # None if no run is finished
    split: str


class Baseline(NamedTuple):
    """The row without distillation that a row is compared with."""

    row: Row | None
    reason: str  # why there is none, '' if there is


def read_keys(run: Run) -> dict:
    """{dotted key: value} of the options with an effect; all options if the config is not valid."""
    if run.config is not None:
        return identity.identity(run.config)
    return {key: value for key, value in run.stored.items() if key not in identity.IRRELEVANT_KEYS}


def make_settings(runs, teacher_names) -> list[Setting]:
    """Groups runs into settings.

    Args:
      runs: those without a config are left out.
      teacher_names: names of runs that are teachers. They are in a setting only together with another run,
        and never if they are in their student's workdir.
    """
    groups, inner_teachers = {}, {inner_teacher_name(run) for run in runs}
    for run in runs:
        if not run.stored or run.name in inner_teachers:
            continue
        options = read_keys(run)
        groups.setdefault(_to_json(_setting_options(options)), []).append((run, options))
    groups = {
        key: group for key, group in groups.items() if any(run.name not in teacher_names for run, _ in group)
    }
    groups = [part for group in groups.values() for part in _split_by_data(group)]
    untitled = [_make_setting(group) for group in groups]
    return [
        setting._replace(title=title)
        for setting, title in zip(untitled, _make_titles(untitled, groups), strict=True)
    ]


def _split_by_data(group):
    """Splits runs of one setting by the data that they were trained on."""
    digests = {}
    for run, options in group:
        # The first examples are recorded with the rest where that is read, too.
        has_rest = options.get('dataset.labelled_by') == 'first' and bool(options.get('dataset.unlabelled'))
        digests.setdefault(has_rest, set()).add(run.data)
    if all(len(of_part - {''}) <= 1 for of_part in digests.values()):
        return [group]
    parts = {}
    for run, options in group:
        parts.setdefault(run.data, []).append((run, {**options, CONTENT: run.data or 'unknown'}))
    return list(parts.values())


def _setting_options(options):
    return {
        key: value
        for key, value in options.items()
        if key.startswith(_OF_SETTING) and key not in _OF_TRAINING
    }


def _to_json(options):
    return json.dumps(options, sort_keys=True, default=str)


def _make_setting(group):
    rows = []
    for run, options in group:
        row_options = {key: value for key, value in options.items() if key not in SEEDS}
        # Only its parameters identify such a teacher.
        if run.stored.get('teacher.pretrained') and run.result:
            row_options['teacher.pretrained'] = run.result['teacher_fingerprint']
        for i, row in enumerate(rows):
            if row.options == row_options and _belongs_to(run, row):
                rows[i] = row._replace(runs=(*row.runs, run))
                break
        else:
            rows.append(Row('', (run,), row_options))
    rows.sort(key=lambda row: row.method != SCRATCH)
    labels = _make_labels(rows)
    rows = [row._replace(label=label) for row, label in zip(rows, labels, strict=True)]
    metrics = {run.result['metric'] for row in rows for run in row.finished}
    split = rows[0].runs[0].stored.get('dataset.split', '')
    return Setting('', tuple(rows), min(metrics, default=None), str(split))


def _belongs_to(run, row):
    """Whether a run has other seeds than a row, and the same teacher for equal seeds of teachers."""
    if run.result is None:
        return True
    fingerprint, seed = run.result['teacher_fingerprint'], run.stored.get('teacher.seed')
    return all(
        not set(run.result['seeds']) & set(other.result['seeds'])
        and (other.stored.get('teacher.seed') != seed or other.result['teacher_fingerprint'] == fingerprint)
        for other in row.finished
    )


def differing_keys(dicts) -> list[str]:
    """The keys with different values in the dicts that have them."""
    values_by_key = {}
    for options in dicts:
        for key, value in options.items():
            values_by_key.setdefault(key, set()).add(_to_json(value))
    return sorted(key for key, values in values_by_key.items() if len(values) > 1)


def format_value(value) -> str:
    """Formats a value of a config for display."""
    if isinstance(value, list):
        return ', '.join(map(format_value, value)) or '()'
    return 'none' if value in (None, '') else str(value)


def _make_labels(rows):
    """Makes a label for each row: its method, and its differences to other rows of this method."""
    labels = []
    for row in rows:
        same_method = [other.options for other in rows if other.method == row.method]
        keys = [key for key in differing_keys(same_method) if key in row.options]
        if len(same_method) == 1:
            labels.append(row.method)
        elif 0 < len(keys) <= _MOST_KEYS:
            differences = [
                f'{key.removeprefix(f"{row.method}.")} {format_value(row.options[key])}' for key in keys
            ]
            labels.append(f'{row.method}, {", ".join(differences)}')
        else:
            labels.append(f'{row.method} ({row.runs[0].name})')
    return [
        label if labels.count(label) == 1 else f'{label} ({row.runs[0].name})'
        for row, label in zip(rows, labels, strict=True)
    ]


def _make_titles(settings, groups):
    """Makes a title for each setting: its data and metric, and its differences to others with these."""
    plain = []
    for setting in settings:
        finished = [run for row in setting.rows for run in row.finished]
        first = setting.rows[0].runs[0]
        data = finished[0].result['dataset'] if finished else format_value(first.stored.get('dataset.name'))
        plain.append(f'{data}, {setting.split} {setting.metric or ""}'.rstrip())
    parts = [_setting_options(group[0][1]) for group in groups]
    titles = []
    for title, part in zip(plain, parts, strict=True):
        same_title = [other for name, other in zip(plain, parts, strict=True) if name == title]
        keys = [key for key in differing_keys(same_title) if key in part]
        ellipsis = ', …' if len(keys) > _MOST_KEYS else ''
        differences = ', '.join(f'{key} {format_value(part[key])}' for key in keys[:_MOST_KEYS])
        titles.append(f'{title}; {differences}{ellipsis}' if differences else title)
    return titles


def find_baseline(row: Row, rows) -> Baseline:
    """Finds the row without distillation that differs from a row in the fewest options.

    Args:
      row: of a setting.
      rows: all rows of the setting.
    """
    if row.method == SCRATCH:
        return Baseline(None, '')
    rows_by_distance = {}
    for other in rows:
        if other.method == SCRATCH and other.finished:
            count = len([key for key in differing_keys([row.options, other.options]) if key != 'method'])
            rows_by_distance.setdefault(count, []).append(other)
    if not rows_by_distance:
        return Baseline(None, 'no finished run without distillation')
    nearest = rows_by_distance[min(rows_by_distance)]
    if len(nearest) > 1:
        return Baseline(None, f'{len(nearest)} runs without distillation are equally near')
    return Baseline(nearest[0], '')
