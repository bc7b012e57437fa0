"""Finds and reads the runs under a folder, in any state.

Invalid files raise no error: their run has the state DAMAGED, with the reason.
"""

import math
import os
from typing import NamedTuple

import ml_collections
from etils import epath

from td_jax import config as config_lib
from td_jax.analysis import cka
from td_jax.errors import UserError, reason
from td_jax.files import metric_log, workdir
from td_jax.training import data_record, finished

FINISHED, UNFINISHED, DIVERGED, DAMAGED = 'finished', 'unfinished', 'diverged', 'damaged'
# A folder with any of these is a run. A config is not enough, because exports have one, too.
_MARKS = {workdir.RESULT, workdir.ERRORS, workdir.DIVERGED, metric_log.FILE}
# The files of a run before its first line of metrics.
_BEGINNING = {'.lock', finished.TEACHER}
# Steps and seeds are int32 on devices.
_LARGEST = 2**31 - 1
# Means of float32 are smaller.
_LARGEST_NUMBER = 1e100


class Run(NamedTuple):
    """A run as recorded in its files."""

    name: str  # its path relative to the searched folder, '.' for that folder itself
    folder: epath.Path
    state: str  # FINISHED, UNFINISHED, DIVERGED or DAMAGED
    reason: str  # why it is not finished, '' if it is
    stored: dict  # {dotted key: value} of its config, {} without one
    remarks: tuple[str, ...] = ()  # files that are ignored, with reasons
    config: ml_collections.ConfigDict | None = None  # None without a valid one
    result: dict | None = None  # of a finished run, checked
    lines: tuple[dict, ...] = ()  # of its metrics, only numbers
    data: str = ''  # the digest of its data, '' if unknown

    @property
    def method(self) -> str:
        """The method, '' if unknown."""
        return str(self.stored.get('method', ''))

    @property
    def last_step(self) -> int:
        """The last step in its metrics, 0 without metrics."""
        return max((line['step'] for line in self.lines), default=0)


class RunFolder(NamedTuple):
    """The runs and other results under a folder."""

    runs: tuple[Run, ...]  # in the order of their names
    comparisons: tuple[tuple[str, epath.Path], ...]  # (relative path, folder) of folders with a CKA file
    unreadable: tuple[tuple[str, str], ...]  # (relative path, reason) of folders


def find_runs(root: epath.Path) -> RunFolder:
    """Reads all runs in a folder and in the folders in it.

    Raises:
      UserError: it does not exist, or holds no run.
    """
    runs, comparisons, unreadable = [], [], []
    for folder, names in _folders(root):
        name = os.path.relpath(os.fspath(folder), os.fspath(root))
        if isinstance(names, str):
            unreadable.append((name, names))
            continue
        if names & _MARKS or ('.lock' in names and names <= _BEGINNING):
            runs.append(read_run(folder, name))
        if cka.NUMBERS in names:
            comparisons.append((name, folder))
    if unreadable and unreadable[0][0] == '.':
        raise UserError(f'--workdir {root} cannot be read: {unreadable[0][1]}.')
    if not runs:
        raise UserError(
            f'--workdir {root} holds no run of td_jax; name the workdir of a run, or a folder of several.'
        )
    return RunFolder(tuple(runs), tuple(comparisons), tuple(unreadable))


def _folders(root):
    """Yields (folder, names in it or why it cannot be read), each folder once, from the top down."""
    waiting, visited = [root], set()
    while waiting:
        folder = waiting.pop()
        # Links may form a cycle.
        if _real_path(folder) in visited:
            continue
        visited.add(_real_path(folder))
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
            inner = [entry for entry in entries if _may_hold_runs(entry.name) and entry.is_dir()]
        # Clients of buckets have other exceptions than OSError.
        except Exception as error:
            yield folder, reason(error)
            continue
        yield folder, {entry.name for entry in entries}
        waiting += reversed(inner)


def _may_hold_runs(name):
    is_known = name == finished.CHECKPOINTS or name in _MARKS or name.startswith('events.out.')
    return not is_known and not name.startswith('.')


def read_run(folder: epath.Path, name: str) -> Run:
    """Reads a run from its files; never raises a UserError.

    Args:
      folder: its workdir.
      name: of the run.
    """
    remarks, damage = [], []

    def try_read(read_file, messages):
        """Returns the result of a function, or None and appends its error to `messages`."""
        try:
            return read_file()
        except UserError as error:
            messages.append(str(error))
            return None

    lines = tuple(map(_keep_numbers, try_read(lambda: metric_log.read(folder), remarks) or []))
    lines = tuple(line for line in lines if 0 <= line.get('step', -1) <= _LARGEST)
    stored = try_read(lambda: workdir.read_json(folder / workdir.CONFIG), damage)
    result = try_read(lambda: _read_result(folder), damage)
    note = try_read(lambda: workdir.read_json(folder / workdir.DIVERGED), remarks)
    if result and stored is None and not damage:
        damage.append(f'{folder / workdir.CONFIG} is missing')
    data = try_read(lambda: data_record.digest(folder), remarks) or ''
    config = None
    if stored is not None:
        config, complaint = parse_config(stored)
        remarks += [complaint] if complaint else []
    run = Run(
        name=name,
        folder=folder,
        state=FINISHED,
        reason='',
        remarks=tuple(remarks),
        stored=config_lib.complete(stored) if stored else {},
        config=config,
        lines=lines,
        data=data,
    )
    if damage:
        return run._replace(state=DAMAGED, reason=' '.join(damage))
    if note is not None:
        return run._replace(state=DIVERGED, reason=str(note.get('reason', 'its loss is not finite')))
    if not result or run.last_step > result['steps']:
        return run._replace(state=UNFINISHED, reason=_explain_unfinished(run, result))
    return run._replace(result=result)


def parse_config(stored: dict) -> tuple[ml_collections.ConfigDict | None, str]:
    """Parses a config from JSON: (config, ''), or (None, the reason why it is invalid)."""
    try:
        config = config_lib.from_json(stored)
        config_lib.check(config)
    except UserError as error:
        return None, f'{workdir.CONFIG}: {error}'
    # Raised by ml_collections for values of another type, and for a value in place of a section.
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        return None, f'{workdir.CONFIG}: {reason(error)}'
    return config, ''


def is_number(value) -> bool:
    """Whether a value of JSON is a number small enough that its square is finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _keep_numbers(line):
    """Keeps the numbers of a line of metrics, including those that are not finite."""
    return {name: value for name, value in line.items() if isinstance(value, float) or is_number(value)}


def _read_result(folder):
    """The result of a run, or None; raises a UserError if its values are invalid."""
    result = finished.read_result(folder)
    if result is None:
        return None
    values, seeds = result['values'], result['seeds']
    texts = [result[key] for key in ('method', 'dataset', 'metric', 'split')]
    is_right = (
        all(isinstance(text, str) for text in texts)
        and isinstance(values, list)
        and isinstance(seeds, list)
        and len(values) == len(seeds) > 0
        and all(map(is_number, values))
        and all(isinstance(seed, int) and 0 <= seed <= _LARGEST for seed in seeds)
        and len(set(seeds)) == len(seeds)
        and isinstance(result['steps'], int)
        and (result['teacher'] is None or is_number(result['teacher']))
        and isinstance(result['teacher_fingerprint'], str | None)
    )
    if not is_right:
        raise UserError(
            f'{folder / workdir.RESULT} is damaged: its values, seeds, steps or names are none; delete it, '
            'and the same command makes it.'
        )
    groups = result.get('groups')
    groups = groups.items() if isinstance(groups, dict) else ()
    return {**result, 'groups': {name: group for name, group in groups if _is_group(group, seeds)}}


def _is_group(group, seeds):
    values = group.get('values') if isinstance(group, dict) else None
    return isinstance(values, list) and len(values) == len(seeds) and all(map(is_number, values))


def _explain_unfinished(run, result):
    num_steps = run.stored.get('num_steps', 'unknown')
    if result:
        return (
            f'trained on since its result of step {result["steps"]}: at step {run.last_step} of {num_steps}'
        )
    if not run.stored:
        reached = f', at step {run.last_step}' if run.lines else ''
        return f'nothing is saved yet{reached}; it is under way, or was stopped'
    text = f'at step {run.last_step} of {num_steps} when its metrics were last written; under way, or stopped'
    for line in run.lines:
        not_finite = [name for name, value in line.items() if not math.isfinite(value)]
        if not_finite:
            return f'{text}; {not_finite[0]} is not finite at step {line["step"]}'
    return text


def inner_teacher_name(run: Run) -> str:
    """The name of a teacher in the workdir of a run."""
    return os.path.normpath(os.path.join(run.name, finished.TEACHER))


def find_teachers(runs) -> dict[str, list[str]]:
    """Finds the runs that are teachers of others, {name of a teacher: names of its students}.

    A run is a teacher if it is the folder `teacher` in the workdir of a student, or if a student's config
    names it. A folder that has moved is also searched next to the student, as in training.
    """
    places = {_real_path(run.folder): run.name for run in runs}
    names, students_by_teacher = set(places.values()), {}
    for run in runs:
        if inner_teacher_name(run) in names:
            students_by_teacher.setdefault(inner_teacher_name(run), []).append(run.name)
        checkpoint = run.stored.get('teacher.checkpoint')
        has_teacher = config_lib.has_teacher(run.config) if run.config else run.method != 'supervised'
        if not isinstance(checkpoint, str) or not checkpoint or not has_teacher:
            continue
        try:
            folder = workdir.resolve(checkpoint)
        except UserError:
            continue
        for place in (folder, run.folder.parent / folder.name):
            if _real_path(place) in places:
                students_by_teacher.setdefault(places[_real_path(place)], []).append(run.name)
                break
    return students_by_teacher


def _real_path(folder):
    return os.fspath(folder) if workdir.is_in_bucket(folder) else os.path.realpath(folder)
