"""The record of a run's training data, kept next to its config: ids, class names, and a digest of the data.

A data set may change between two calls, and ids and classes are numbered by its order. A run must see the
same data when it is continued, counted as finished or used as a teacher. To predict, it needs only its
record.
"""

import functools
import json
from collections.abc import Iterable

from etils import epath

from td_jax.data import base as data
from td_jax.data import description
from td_jax.devices import processes
from td_jax.errors import UserError
from td_jax.files import workdir

# The parts of a record: the student's data, and those of a teacher that is trained by td_jax.
STUDENT, TEACHER = 'student', 'teacher'
# Reading more files than this before a run is announced.
FEW_FILES = 10_000
ARRAYS = 'arrays'  # key in a record: the digest of its arrays


def describe(sources: dict[str, data.Source], known: Iterable[dict | None] = ()) -> dict:
    """Describes the data of a run, as JSON.

    Args:
      sources: {STUDENT: data.Source}, with TEACHER if it is trained by td_jax.
      known: earlier records; files that have not been touched since are not read again.

    Raises:
      UserError: a file cannot be read.
    """
    before = [record[who] for record in known if record for who in (STUDENT, TEACHER) if who in record]
    record = {}
    for who, source in sources.items():
        # A teacher may have learned from the same files.
        before = [*before, *record.values()]
        count = description.files_to_read(source, before)
        if count > FEW_FILES:
            processes.say(f'{source.name}: {count} files are read once, to know them again')
        record[who] = description.describe(source, before)
    return record


def say_unknown(sources: dict[str, data.Source]):
    """Reports data of which only the number of examples is known."""
    for source in sources.values():
        if description.is_known_by_count_alone(source):
            processes.say(
                f'{source.name} is streamed and its Source has no known_by: only the number of its examples '
                'tells whether it has changed'
            )


def write(folder: epath.Path, record: dict, sources: dict[str, data.Source]):
    """Writes a record into a workdir.

    Args:
      folder: the workdir.
      record: by `describe`, of these sources.
      sources: as of `describe`.
    """
    arrays = {}
    for who, source in sources.items():
        # The pairs of users and items in a teacher's training data are not needed.
        own = source if who == STUDENT else source._replace(pairs={})
        arrays |= {f'{who}/{name}': array for name, array in description.arrays_of(own).items()}
    if arrays:
        workdir.write_arrays(folder / workdir.DATA_ARRAYS, arrays)
        record = {**record, ARRAYS: description.digest_arrays(arrays)}
    # Last, so that the arrays that it names exist.
    workdir.write(folder / workdir.DATA, json.dumps(record, indent=1) + '\n')


def read(folder: epath.Path) -> dict | None:
    """The record of a run; None for a run of an older version, or before its first checkpoint.

    Raises:
      UserError: it is damaged.
    """
    path = folder / workdir.DATA
    # A record without a config was left by a run that was killed before its first checkpoint.
    record = workdir.read_json(path) if workdir.holds_run(folder) else None
    if record is None:
        return None
    descriptions = {who: record[who] for who in (STUDENT, TEACHER) if who in record}
    if STUDENT not in descriptions or not all(map(description.is_description, descriptions.values())):
        raise UserError(
            f'{path} is damaged; delete it, and ids and class names are those of the data set as it is.'
        )
    return record


def digest(folder: epath.Path) -> str:
    """A short digest of the training data of a run's students; '' without a record.

    Raises:
      UserError: its record is damaged.
    """
    record = read(folder)
    return description.digest(record[STUDENT]) if record else ''


def source_of(folder: epath.Path, record: dict, who: str, config, task) -> data.Source:
    """Restores the data of a run, without examples, from its record.

    Args:
      folder: its workdir.
      record: by `read`.
      who: STUDENT or TEACHER.
      config: `config.dataset`, whose name is in description.RESTORED.
      task: `config.dataset` or `config.teacher.dataset`.

    Raises:
      UserError: the record is damaged.
    """
    arrays = {}
    if ARRAYS in record:
        path = folder / workdir.DATA_ARRAYS
        arrays = workdir.read_arrays(path)
        if arrays is None or description.digest_arrays(arrays) != record[ARRAYS]:
            raise UserError(
                f'{path} is missing or does not belong to the {workdir.DATA} next to it; put it back, or '
                'delete both, and ids and class names are those of the data set as it is.'
            )
    own = {name.partition('/')[2]: array for name, array in arrays.items() if name.startswith(f'{who}/')}
    return description.restore(record[who], own, config, task)


# --- What has changed ------------------------------------------------------------------------------


def check(folder: epath.Path, before: dict | None, now: dict):
    """Refuses a run whose data have changed.

    Args:
      folder: its workdir.
      before: its record; a missing one, None, is reported.
      now: the record of the data as they are now.

    Raises:
      UserError: names what has changed, and the remedy.
    """
    if before is None:
        say_old(folder)
        return
    for who in [who for who in (STUDENT, TEACHER) if who in before and who in now]:
        whose = folder if who == STUDENT else f'the teacher of {folder}'
        _refuse_changes(whose, before[who], now[who], 'choose another --workdir')


def check_teacher(folder: epath.Path, before: dict | None, now: dict):
    """Refuses a teacher whose data have changed.

    Args:
      folder: the teacher's workdir.
      before: its record; a missing one, None, is reported.
      now: the description of its data as they are now.

    Raises:
      UserError: names what has changed, and the remedy.
    """
    if before is None:
        say_old(folder)
    else:
        _refuse_changes(f'the teacher in {folder}', before[STUDENT], now, 'train another teacher')


def _refuse_changes(whose, before, now, way_out):
    if changes := description.differences(before, now):
        raise UserError(
            f'{whose} was trained on other data than {now["name"]} is now: {"; ".join(changes)}. '
            f'Put the data back, or {way_out}.'
        )


def check_same(record: dict, own: dict):
    """Refuses a process that sees other data than process 0.

    Args:
      record: that of process 0.
      own: that of this process.

    Raises:
      UserError: names the differences.
    """
    for who, described in record.items():
        if changes := description.differences(described, own[who]):
            raise UserError(
                f'a process sees other data than process 0 ("there"): {"; ".join(changes)}. Give all of them '
                'the same data.'
            )


@functools.cache
def say_old(folder: epath.Path):
    """Reports, once per process, that a run has no record of its data."""
    processes.say(
        f'{folder} does not say what it was trained on, as an older version of td_jax left it: whether its '
        'data have changed since is not known'
    )
