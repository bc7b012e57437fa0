"""What a run keeps of its data set: to know it again, and to show a student what it was shown without it.

A description is a dict as JSON holds it; with it come arrays, which say what belongs to an id. It holds no
examples, only how many there are and a digest.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping

import flax
import jax
import numpy as np

from td_jax.data import digits, file_digest, images, ratings
from td_jax.data.base import (
    EvaluationStream,
    Files,
    Ids,
    LabelledPool,
    Source,
    TrainStream,
    arrays_in_memory,
    count,
    one_example,
)
from td_jax.errors import UserError

# Parts that examples are of.
TRAINING, EVALUATION = 'training examples', 'evaluation examples'
# Changes, and names in one of them, that are told one by one.
SHOWN = 3
# Of a name or a text, in letters.
LONGEST = 60
KEYS = {'name', 'task', 'label_names', 'vocabularies', 'ids', 'is_rounded', 'example', 'content'}


# --- What is kept ----------------------------------------------------------------------------------


def describe(source: Source, known: Iterable[dict] = ()) -> dict:
    """The description of a data set.

    Args:
      source: it.
      known: descriptions from before, by which files that were not touched since are not read again.

    Raises:
      UserError: a file that cannot be read.
    """
    example = {field: np.asarray(array) for field, array in one_example(source).items()}
    return {
        'name': source.name,
        'task': source.task,
        'label_names': list(map(str, source.label_names)),
        'vocabularies': dict(source.vocabularies),
        'ids': {
            field: {'column': ids.column, 'raw': list(map(str, ids.raw))} for field, ids in source.ids.items()
        },
        'is_rounded': source.picture is not None and source.picture.is_rounded,
        'example': {
            field: {'shape': list(array.shape), 'type': str(array.dtype)} for field, array in example.items()
        },
        'content': _content(source, list(known)),
    }


def _content(source, known):
    """{part of the data: what it is known by}."""
    content = {}
    for what, examples in ((TRAINING, source.train), (EVALUATION, source.evaluation)):
        content[what] = {'count': count(examples)}
        arrays = arrays_in_memory(examples)
        if source.known_by is None and arrays is not None:
            content[what]['sha256'] = digest_of(arrays)
        if isinstance(examples, LabelledPool):
            # Lots belong to places in the whole data set: one seed's draw tells whether these moved.
            content[what]['drawn'] = digest_of({'rows': examples.rows(0)})
    for what, value in (source.known_by or {}).items():
        is_files = isinstance(value, Files)
        before = [description['content'].get(what, {}) for description in known]
        content[what] = file_digest.digest(value, before) if is_files else {'text': str(value)}
    tables = {_name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source.tables)}
    return content | {name: {'sha256': digest_of({name: array})} for name, array in tables.items()}


def _name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator='/') or 'table'


def files_to_read(source: Source, known: Iterable[dict]) -> int:
    """How many files `describe` has to read that no description from before knows."""
    before = {what for description in known for what in description['content']}
    files = {what: value for what, value in (source.known_by or {}).items() if isinstance(value, Files)}
    return sum(len(value.names) for what, value in files.items() if what not in before)


def is_known_by_count_alone(source: Source) -> bool:
    """Whether nothing tells examples from others of their number: they are streamed, and nothing is said."""
    return source.known_by is None and arrays_in_memory(source.train) is None


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and elements of some arrays, in hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        found.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        # Of objects, the bytes are addresses.
        found.update(
            repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).data
        )
    return found.hexdigest()


def arrays_of(source: Source) -> dict[str, np.ndarray]:
    """{name: array}, what a description is kept with; nothing of a data set that `restore` does not make."""
    if not source.ids:
        return {}
    tables = flax.traverse_util.flatten_dict(source.tables, sep='/')
    return {
        **{f'tables/{name}': np.asarray(array) for name, array in tables.items()},
        **{f'known/{field}': ids.is_known for field, ids in source.ids.items()},
        **{f'pairs/{field}': array for field, array in source.pairs.items()},
    }


def is_description(found) -> bool:
    """Whether what was read back is a description."""
    return (
        isinstance(found, dict)
        and found.keys() >= KEYS
        and all(isinstance(found[key], dict) for key in ('vocabularies', 'ids', 'example', 'content'))
        and all(isinstance(part, dict) for part in found['content'].values())
        and all(ids.keys() >= {'column', 'raw'} for ids in found['ids'].values())
        and isinstance(found['label_names'], list)
    )


# --- What has changed ------------------------------------------------------------------------------


def digest(description: dict) -> str:
    """A short name of the data that a description is of, another one for other data."""
    content = {what: _without_stamp(part) for what, part in description['content'].items()}
    told = [description['task'], description['label_names'], description['ids'], content]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]


def differences(before: dict, now: dict) -> list[str]:
    """What has changed from one description to another, a few words each; [] for the same data.

    Ids and classes come first: with them, everything that is numbered by them changes.
    """
    changes = []
    for field in sorted(before['ids'].keys() | now['ids'].keys()):
        old, new = before['ids'].get(field, {}), now['ids'].get(field, {})
        changes += _of_names((new or old)['column'], old.get('raw', []), new.get('raw', []))
    changes += _of_names('class', before['label_names'], now['label_names'])
    is_renumbered = bool(changes)
    for what in dict.fromkeys([*before['content'], *now['content']]):
        old, new = before['content'].get(what), now['content'].get(what)
        if _without_stamp(old) != _without_stamp(new):
            changes += _of_part(what, old, new, is_renumbered)
    if before['task'] != now['task']:
        changes.append(f'task: {before["task"]} there, {now["task"]} here')
    more = [f'and {len(changes) - SHOWN} more'] if len(changes) > SHOWN else []
    return changes[:SHOWN] + more


def _without_stamp(part):
    return part and {key: value for key, value in part.items() if key != 'stamp'}


def _of_names(what, before, now):
    """What has changed in a list of names."""
    if before == now:
        return []
    old, new = set(before), set(now)
    gone, come = [x for x in before if x not in new], [x for x in now if x not in old]
    if not gone and not come:
        return [f'{what}: in another order']
    if len(gone) == len(come) <= SHOWN:
        pairs = [f'{_cut(a)} -> {_cut(b)}' for a, b in zip(gone, come, strict=True)]
        return [f'{what}: {", ".join(pairs)}']
    kinds = (come, 'added'), (gone, 'gone')
    parts = [f'{len(names)} {how} ({_listed(names)})' for names, how in kinds if names]
    return [f'{what}: {", ".join(parts)}']


def _listed(names):
    return ', '.join([*map(_cut, names[:SHOWN]), *(['...'] if len(names) > SHOWN else [])])


def _cut(text):
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def _of_part(what, old, new, is_renumbered):
    if old is None or new is None:
        return [] if is_renumbered else [f'{what}: {"gone" if new is None else "new"}']
    if old.get('count') != new.get('count'):
        return [f'{what}: {old.get("count")} there, {new.get("count")} here']
    if 'text' in old and 'text' in new:
        return [f'{what}: {old["text"]} there, {new["text"]} here']
    return [] if is_renumbered else [f'{what}: other content']


# --- A data set without its examples ---------------------------------------------------------------


def _of_digits(description, config, task):
    return {'inputs': digits.inputs, 'picture': digits.PICTURE}


def _of_images(description, config, task):
    # Those that were taken as they are, are resized by inputs; others were before.
    is_native = not description['is_rounded']
    inputs = functools.partial(images.inputs_of, config, is_kept=False, is_native=is_native)
    return {
        'inputs': inputs(task),
        'inputs_for': inputs,
        'picture': images.picture_of(config, task, is_native),
    }


def _of_ratings(description, config, task):
    return {'inputs': ratings.inputs_of(config, *description['ids'])}


# config.dataset.name -> (description, config.dataset, task) -> fields of a Source, inputs among them
RESTORED = {
    'digits': _of_digits,
    **dict.fromkeys(images.NAMES, _of_images),
    **dict.fromkeys(('movielens', 'ratings'), _of_ratings),
}


def restore(description: dict, arrays: dict[str, np.ndarray], config, task) -> Source:
    """A Source without examples, by which a student is shown what its description's source showed it.

    Args:
      description: by `describe`.
      arrays: by `arrays_of`.
      config: `config.dataset`, whose name is one of RESTORED.
      task: `config.dataset` or `config.teacher.dataset`.
    """
    example = {
        field: np.zeros(array['shape'], array['type']) for field, array in description['example'].items()
    }
    counts = [description['content'][what]['count'] for what in (TRAINING, EVALUATION)]
    absent = functools.partial(_refuse_examples, description['name'])
    return Source(
        name=description['name'],
        train=TrainStream(counts[0], example, absent),
        evaluation=EvaluationStream(counts[1], absent),
        task=description['task'],
        label_names=tuple(description['label_names']),
        vocabularies=description['vocabularies'],
        tables=flax.traverse_util.unflatten_dict(_under('tables/', arrays), sep='/'),
        **RESTORED[config.name](description, config, task),
        ids={
            field: Ids(ids['column'], np.array(ids['raw'], object), arrays[f'known/{field}'])
            for field, ids in description['ids'].items()
        },
        pairs=_under('pairs/', arrays),
    )


def _under(prefix, arrays):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _refuse_examples(name, *arguments, **named):
    raise UserError(f'the examples of {name} are not kept with a run; they are read from its data set alone.')
