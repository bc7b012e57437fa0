"""The runs under a folder, each with what its files say, in whatever state they are.

Nothing here raises because of what a file holds: a run whose files cannot be made sense of is a run that is
damaged, with the reason.
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
# Any of these makes a folder that of a run. A config alone does not: exports have one, too.
_MARKS = {workdir.RESULT, workdir.ERRORS, workdir.DIVERGED, metric_log.FILE}
# All that a run has before its first line.
_BEGINNING = {'.lock', finished.TEACHER}
# Steps and seeds are int32 where they are computed with.
_LARGEST = 2**31 - 1
# Means of float32 are less.
_LARGEST_NUMBER = 1e100


class Run(NamedTuple):
    """What the files of a run say."""

    name: str  # its place below the folder of all, '.' for that folder itself
    folder: epath.Path
    state: str  # FINISHED, UNFINISHED, DIVERGED or DAMAGED
    reason: str  # why it is not finished, '' if it is
    stored: dict  # {dotted key: value} of its config, {} where it has none
    remarks: tuple[str, ...] = ()  # what of its files is left out, and why
    config: ml_collections.ConfigDict | None = None  # None where it has none that td_jax knows
    result: dict | None = None  # of a run that is finished; its numbers are numbers
    lines: tuple[dict, ...] = ()  # of its metrics, numbers alone
    data: str = ''  # what its data are known by, '' where it does not say

    @property
    def method(self) -> str:
        """The method, '' where nothing says it."""
        return str(self.stored.get('method', ''))

    @property
    def last_step(self) -> int:
        """That of the last line of its metrics, 0 where there is none."""
        return max((line['step'] for line in self.lines), default=0)


class Found(NamedTuple):
    """What lies under a folder."""

    runs: tuple[Run, ...]  # in the order of their names
    comparisons: tuple[
        tuple[str, epath.Path], ...
    ]  # (its place below the folder, it), of those with a CKA file
    unreadable: tuple[tuple[str, str], ...]  # (its place below the folder, why), of folders


def find(root: epath.Path) -> Found:
    """Reads all runs in a folder and in the folders in it.

    Raises:
      UserError: it is not there, or holds no run.
    """
    runs, comparisons, unreadable = [], [], []
    for folder, names in _folders(root):
        name = os.path.relpath(os.fspath(folder), os.fspath(root))
        if isinstance(names, str):
            unreadable.append((name, names))
            continue
        if names & _MARKS or ('.lock' in names and names <= _BEGINNING):
            runs.append(read(folder, name))
        if cka.NUMBERS in names:
            comparisons.append((name, folder))
    if unreadable and unreadable[0][0] == '.':
        raise UserError(f'--workdir {root} cannot be read: {unreadable[0][1]}.')
    if not runs:
        raise UserError(
            f'--workdir {root} holds no run of td_jax; name the workdir of a run, or a folder of several.'
        )
    return Found(tuple(runs), tuple(comparisons), tuple(unreadable))


def _folders(root):
    """(folder, the names in it, or why it cannot be read), each place once, from the top down."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        # A link may lead back to where it lies.
        if _place(folder) in seen:
            continue
        seen.add(_place(folder))
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
            inner = [entry for entry in entries if _may_hold_runs(entry.name) and entry.is_dir()]
        # The client of a bucket has errors of its own.
        except Exception as error:
            yield folder, reason(error)
            continue
        yield folder, {entry.name for entry in entries}
        waiting += reversed(inner)


def _may_hold_runs(name):
    is_known = name == finished.CHECKPOINTS or name in _MARKS or name.startswith('events.out.')
    return not is_known and not name.startswith('.')


def read(folder: epath.Path, name: str) -> Run:
    """A run as its files say it is; it never raises a UserError.

    Args:
      folder: its workdir.
      name: what it is called.
    """
    remarks, damage = [], []

    def attempted(read_it, complaints):
        """What a function returns, or None and a complaint."""
        try:
            return read_it()
        except UserError as error:
            complaints.append(str(error))
            return None

    lines = tuple(map(_numbers_of, attempted(lambda: metric_log.read(folder), remarks) or []))
    lines = tuple(line for line in lines if 0 <= line.get('step', -1) <= _LARGEST)
    stored = attempted(lambda: workdir.read_json(folder / workdir.CONFIG), damage)
    result = attempted(lambda: _read_result(folder), damage)
    note = attempted(lambda: workdir.read_json(folder / workdir.DIVERGED), remarks)
    if result and stored is None and not damage:
        damage.append(f'{folder / workdir.CONFIG} is missing')
    data = attempted(lambda: data_record.digest(folder), remarks) or ''
    config = None
    if stored is not None:
        config, complaint = understood(stored)
        remarks += [complaint] if complaint else []
    run = Run(
        name=name,
        folder=folder,
        state=FINISHED,
        reason='',
        remarks=tuple(remarks),
        stored=config_lib.completed(stored) if stored else {},
        config=config,
        lines=lines,
        data=data,
    )
    if damage:
        return run._replace(state=DAMAGED, reason=' '.join(damage))
    if note is not None:
        return run._replace(state=DIVERGED, reason=str(note.get('reason', 'its loss is not finite')))
    if not result or run.last_step > result['steps']:
        return run._replace(state=UNFINISHED, reason=_unfinished(run, result))
    return run._replace(result=result)


def understood(stored: dict) -> tuple[ml_collections.ConfigDict | None, str]:
    """(the config, '') that a dict read back from JSON is, or (None, why it is none that td_jax knows)."""
    try:
        config = config_lib.from_json(stored)
        config_lib.check(config)
    except UserError as error:
        return None, f'{workdir.CONFIG}: {error}'
    # What ml_collections raises of values of another type, and of a value where others are below.
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        return None, f'{workdir.CONFIG}: {reason(error)}'
    return config, ''


def is_number(value) -> bool:
    """Whether a value of JSON is a number that a run can come to, and whose square is one, too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _numbers_of(line):
    """The numbers of a line of metrics, those that are not finite among them; steps as they are."""
    return {name: value for name, value in line.items() if isinstance(value, float) or is_number(value)}


def _read_result(folder):
    """The result of a run, or None; a UserError where its numbers are none."""
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
    return {**result, 'groups': {name: group for name, group in _items(groups) if _is_group(group, seeds)}}


def _items(groups):
    return groups.items() if isinstance(groups, dict) else ()


def _is_group(group, seeds):
    values = group.get('values') if isinstance(group, dict) else None
    return isinstance(values, list) and len(values) == len(seeds) and all(map(is_number, values))


def _unfinished(run, result):
    """Why a run has no valid result."""
    wanted = run.stored.get('num_steps', 'unknown')
    if result:
        return f'trained on since its result of step {result["steps"]}: at step {run.last_step} of {wanted}'
    if not run.stored:
        reached = f', at step {run.last_step}' if run.lines else ''
        return f'nothing is saved yet{reached}; it is under way, or was stopped'
    text = f'at step {run.last_step} of {wanted} when its metrics were last written; under way, or stopped'
    for line in run.lines:
        wrong = [name for name, value in line.items() if not math.isfinite(value)]
        if wrong:
            return f'{text}; {wrong[0]} is not finite at step {line["step"]}'
    return text


def inside(run: Run) -> str:
    """What a teacher in the workdir of a run is called."""
    return os.path.normpath(os.path.join(run.name, finished.TEACHER))


def teachers(runs) -> dict[str, list[str]]:
    """{name of a run that teaches: names of those that it teaches}, of some runs.

    A run teaches where it lies in the workdir of its student, as `teacher`, or where a student's config names
    it; a folder that has been moved is looked for next to the student, as td_jax does.
    """
    places = {_place(run.folder): run.name for run in runs}
    names, found = set(places.values()), {}
    for run in runs:
        if inside(run) in names:
            found.setdefault(inside(run), []).append(run.name)
        named = run.stored.get('teacher.checkpoint')
        is_taught = config_lib.has_teacher(run.config) if run.config else run.method != 'supervised'
        if not isinstance(named, str) or not named or not is_taught:
            continue
        try:
            there = workdir.resolve(named)
        except UserError:
            continue
        for place in (there, run.folder.parent / there.name):
            if _place(place) in places:
                found.setdefault(places[_place(place)], []).append(run.name)
                break
    return found


def _place(folder):
    return os.fspath(folder) if workdir.is_in_bucket(folder) else os.path.realpath(folder)
