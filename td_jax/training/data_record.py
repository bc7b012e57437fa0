"""What a run was trained on, kept beside its config: its ids, class names, and a digest of its data.

A data set may change between two calls, and everything in it is numbered by its own order: a run that goes
on, is taken for finished or teaches must be on the same data, and one that predicts needs none.
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

# Whose data a record has: the student's, and of a run with a teacher that is trained, too, the teacher's.
STUDENT, TEACHER = 'student', 'teacher'
# Files that are read without a word before a run starts.
FEW_FILES = 10_000
ARRAYS = 'arrays'  # in a record, the digest of its arrays


def describe(sources: dict[str, data.Source], known: Iterable[dict | None] = ()) -> dict:
    """The record of a run on some data, as JSON holds it.

    Args:
      sources: {STUDENT: its data, TEACHER: its data}, or the first alone.
      known: records from before, by which files that were not touched since are not read again.

    Raises:
      UserError: a file that cannot be read.
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
    """Says of which data nothing but the number of examples is known."""
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
        # Whom a teacher has been shown with what, nobody asks.
        own = source if who == STUDENT else source._replace(pairs={})
        arrays |= {f'{who}/{name}': array for name, array in description.arrays_of(own).items()}
    if arrays:
        workdir.write_arrays(folder / workdir.DATA_ARRAYS, arrays)
        record = {**record, ARRAYS: description.digest_of(arrays)}
    # Last: where it is, the arrays that it names are there.
    workdir.write(folder / workdir.DATA, json.dumps(record, indent=1) + '\n')


def read(folder: epath.Path) -> dict | None:
    """The record of a run, None where it has none: it is of an older version, or nothing is saved yet.

    Raises:
      UserError: it is damaged.
    """
    path = folder / workdir.DATA
    # What is left of a run that was killed before it had saved anything, binds nobody.
    record = workdir.read_json(path) if (folder / workdir.CONFIG).exists() else None
    if record is None:
        return None
    descriptions = {who: record[who] for who in (STUDENT, TEACHER) if who in record}
    if STUDENT not in descriptions or not all(map(description.is_description, descriptions.values())):
        raise UserError(
            f'{path} is damaged; delete it, and ids and class names are those of the data set as it is.'
        )
    return record


def digest(folder: epath.Path) -> str:
    """A short name of the data that a run's students were trained on; '' where it does not say.

    Raises:
      UserError: its record is damaged.
    """
    record = read(folder)
    return description.digest(record[STUDENT]) if record else ''


def source_of(folder: epath.Path, record: dict, who: str, config, task) -> data.Source:
    """The data of a run without its examples, as its record has it.

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
        if arrays is None or description.digest_of(arrays) != record[ARRAYS]:
            raise UserError(
                f'{path} is missing or not of the {workdir.DATA} beside it; put it back, or delete both, and '
                'ids and class names are those of the data set as it is.'
            )
    own = {name.partition('/')[2]: array for name, array in arrays.items() if name.startswith(f'{who}/')}
    return description.restore(record[who], own, config, task)


# --- What has changed ------------------------------------------------------------------------------


def check(folder: epath.Path, before: dict | None, now: dict):
    """Refuses to take the run in a workdir for one on other data.

    Args:
      folder: the workdir.
      before: its record, None where it has none, which is said.
      now: the record of the data as they are.

    Raises:
      UserError: names what has changed, and the way out.
    """
    if before is None:
        say_old(folder)
        return
    for who in [who for who in (STUDENT, TEACHER) if who in before and who in now]:
        if changes := description.differences(before[who], now[who]):
            whose = folder if who == STUDENT else f'the teacher of {folder}'
            raise UserError(
                f'{whose} was trained on other data than {now[who]["name"]} is now: {"; ".join(changes)}. '
                'Put the data back, or choose another --workdir.'
            )


def check_teacher(folder: epath.Path, before: dict | None, now: dict):
    """Refuses a finished run as a teacher where its data have changed.

    Args:
      folder: the teacher's workdir.
      before: its record, None where it has none, which is said.
      now: the description of its data as they are.

    Raises:
      UserError: names what has changed, and the way out.
    """
    if before is None:
        say_old(folder)
    elif changes := description.differences(before[STUDENT], now):
        raise UserError(
            f'the teacher in {folder} was trained on other data than {now["name"]} is now: '
            f'{"; ".join(changes)}. Put the data back, or train another teacher.'
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
    """Says, once in a process, that a run has no record of its data."""
    processes.say(
        f'{folder} does not say what it was trained on, as an older version of td_jax left it: whether its '
        'data have changed since is not known'
    )
