"""The description of a data set that a run keeps, to detect changes and to give a student inputs without it.

A description is a dict as JSON holds it, with arrays of what belongs to an id. It holds no examples, only
their number and a digest.
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

# The two parts of the examples.
TRAINING, EVALUATION = 'training examples', 'evaluation examples'
UNLABELLED = 'unlabelled'  # key of the examples without labels, of descriptions that have some
# At most so many changes, and names in one of them, are listed.
MAX_LISTED = 3
# Longer names and texts are shortened to so many letters.
MAX_LETTERS = 60
KEYS = {'name', 'task', 'label_names', 'vocabularies', 'ids', 'is_rounded', 'example', 'content'}


# --- Descriptions ----------------------------------------------------------------------------------


def describe(source: Source, previous: Iterable[dict] = ()) -> dict:
    """Describes a data set.

    Args:
      source: the data set.
      previous: earlier descriptions; files that were not touched since are not read again.

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
        'content': _describe_content(source, list(previous)),
        **({UNLABELLED: _describe_unlabelled(source, list(previous))} if source.unlabelled else {}),
    }


def _describe_content(source, previous):
    """{part of the data: what identifies it}."""
    content = {}
    for what, examples in ((TRAINING, source.train), (EVALUATION, source.evaluation)):
        content[what] = {'count': count(examples)}
        arrays = arrays_in_memory(examples)
        if source.known_by is None and arrays is not None:
            content[what]['sha256'] = digest_arrays(arrays)
        if isinstance(examples, LabelledPool):
            # Lots belong to places in the whole data set: the draw of one seed reveals whether places moved.
            content[what]['drawn'] = digest_arrays({'rows': examples.rows(0)})
    for what, value in (source.known_by or {}).items():
        is_files = isinstance(value, Files)
        previous_parts = [description['content'].get(what, {}) for description in previous]
        content[what] = file_digest.digest(value, previous_parts) if is_files else {'text': str(value)}
    tables = {_table_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source.tables)}
    return content | {name: {'sha256': digest_arrays({name: array})} for name, array in tables.items()}


def _describe_unlabelled(source, previous):
    """What identifies the examples without labels, apart from the content.

    They are a choice of how to train on the same data, so they are no part of `digest`.
    """
    unlabelled = source.unlabelled
    part = {'count': unlabelled.count}
    if unlabelled.files is not None:
        before = [description[UNLABELLED] for description in previous if UNLABELLED in description]
        return file_digest.digest(unlabelled.files, before)
    if unlabelled.examples is not None:
        part['sha256'] = digest_arrays(unlabelled.examples)
    if unlabelled.rows is not None:
        part['drawn'] = digest_arrays({'rows': unlabelled.rows(0)})
    return part


def _table_name(path):
    return jax.tree_util.keystr(path, simple=True, separator='/') or 'table'


def files_to_read(source: Source, previous: Iterable[dict]) -> int:
    """Counts the files that `describe` has to read because no earlier description has them."""
    known_parts = {what for description in previous for what in description['content']}
    files = {what: value for what, value in (source.known_by or {}).items() if isinstance(value, Files)}
    return sum(len(value.names) for what, value in files.items() if what not in known_parts)


def is_known_by_count_alone(source: Source) -> bool:
    """Whether only their number identifies the training examples: they are streamed and known_by is None."""
    return source.known_by is None and arrays_in_memory(source.train) is None


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and elements of some arrays, in hexadecimal."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        sha256.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        # The bytes of objects are addresses.
        sha256.update(
            repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).data
        )
    return sha256.hexdigest()


def arrays_of(source: Source) -> dict[str, np.ndarray]:
    """The arrays that are saved with a description, {name: array}; none for data sets without ids."""
    if not source.ids:
        return {}
    tables = flax.traverse_util.flatten_dict(source.tables, sep='/')
    return {
        **{f'tables/{name}': np.asarray(array) for name, array in tables.items()},
        **{f'known/{field}': ids.is_known for field, ids in source.ids.items()},
        **{f'pairs/{field}': array for field, array in source.pairs.items()},
    }


def is_description(value) -> bool:
    """Whether a value read from JSON is a description."""
    return (
        isinstance(value, dict)
        and value.keys() >= KEYS
        and all(isinstance(value[key], dict) for key in ('vocabularies', 'ids', 'example', 'content'))
        and all(isinstance(part, dict) for part in value['content'].values())
        and all(ids.keys() >= {'column', 'raw'} for ids in value['ids'].values())
        and isinstance(value['label_names'], list)
    )


# --- Differences -----------------------------------------------------------------------------------


def digest(description: dict) -> str:
    """A short digest of a description, which differs where the data differ."""
    content = {what: _without_stamp(part) for what, part in description['content'].items()}
    identity = [description['task'], description['label_names'], description['ids'], content]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def differences(before: dict, now: dict) -> list[str]:
    """Lists what has changed between two descriptions, a few words each; [] for the same data.

    Ids and classes come first, because all that is numbered by them changes with them.
    """
    changes = []
    for field in sorted(before['ids'].keys() | now['ids'].keys()):
        old, new = before['ids'].get(field, {}), now['ids'].get(field, {})
        changes += _compare_names((new or old)['column'], old.get('raw', []), new.get('raw', []))
    changes += _compare_names('class', before['label_names'], now['label_names'])
    is_renumbered = bool(changes)
    for what in dict.fromkeys([*before['content'], *now['content']]):
        old, new = before['content'].get(what), now['content'].get(what)
        if _without_stamp(old) != _without_stamp(new):
            changes += _compare_part(what, old, new, is_renumbered)
    unlabelled = [description.get(UNLABELLED) for description in (before, now)]
    if all(unlabelled) and _without_stamp(unlabelled[0]) != _without_stamp(unlabelled[1]):
        changes += _compare_part('examples without labels', *unlabelled, is_renumbered)
    if before['task'] != now['task']:
        changes.append(f'task: {before["task"]} there, {now["task"]} here')
    more = [f'and {len(changes) - MAX_LISTED} more'] if len(changes) > MAX_LISTED else []
    return changes[:MAX_LISTED] + more


def _without_stamp(part):
    return part and {key: value for key, value in part.items() if key != 'stamp'}


def _compare_names(what, before, now):
    """Lists what has changed in a list of names."""
    if before == now:
        return []
    old, new = set(before), set(now)
    removed, added = [x for x in before if x not in new], [x for x in now if x not in old]
    if not removed and not added:
        return [f'{what}: in another order']
    if len(removed) == len(added) <= MAX_LISTED:
        pairs = [f'{_shorten(a)} -> {_shorten(b)}' for a, b in zip(removed, added, strict=True)]
        return [f'{what}: {", ".join(pairs)}']
    kinds = (added, 'added'), (removed, 'gone')
    parts = [f'{len(names)} {how} ({_format_names(names)})' for names, how in kinds if names]
    return [f'{what}: {", ".join(parts)}']


def _format_names(names):
    return ', '.join([*map(_shorten, names[:MAX_LISTED]), *(['...'] if len(names) > MAX_LISTED else [])])


def _shorten(text):
    return text if len(text) <= MAX_LETTERS else f'{text[:MAX_LETTERS]}...'


def _compare_part(what, old, new, is_renumbered):
    if old is None or new is None:
        return [] if is_renumbered else [f'{what}: {"gone" if new is None else "new"}']
    if old.get('count') != new.get('count'):
        return [f'{what}: {old.get("count")} there, {new.get("count")} here']
    if 'text' in old and 'text' in new:
        return [f'{what}: {old["text"]} there, {new["text"]} here']
    return [] if is_renumbered else [f'{what}: other content']


# --- A data set without its examples ---------------------------------------------------------------


def _restore_digits(description, config, task):
    return {'inputs': digits.inputs, 'picture': digits.PICTURE}


def _restore_images(description, config, task):
    # Images of their original size are resized by inputs; others were resized before.
    is_native = not description['is_rounded']
    inputs = functools.partial(images.inputs_of, config, is_in_memory=False, is_native=is_native)
    return {
        'inputs': inputs(task),
        'inputs_for': inputs,
        'picture': images.picture_of(config, task, is_native),
    }


def _restore_ratings(description, config, task):
    return {'inputs': ratings.inputs_of(config, *description['ids'])}


# config.dataset.name -> (description, config.dataset, task) -> fields of a Source, inputs among them
RESTORED = {
    'digits': _restore_digits,
    **dict.fromkeys(images.NAMES, _restore_images),
    **dict.fromkeys(('movielens', 'ratings'), _restore_ratings),
}


def restore(description: dict, arrays: dict[str, np.ndarray], config, task) -> Source:
    """Makes a Source without examples, which gives a student the same inputs as the described source.

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
    refuse = functools.partial(_refuse_examples, description['name'])
    return Source(
        name=description['name'],
        train=TrainStream(counts[0], example, refuse),
        evaluation=EvaluationStream(counts[1], refuse),
        task=description['task'],
        label_names=tuple(description['label_names']),
        vocabularies=description['vocabularies'],
        tables=flax.traverse_util.unflatten_dict(_select_prefix('tables/', arrays), sep='/'),
        **RESTORED[config.name](description, config, task),
        ids={
            field: Ids(ids['column'], np.array(ids['raw'], object), arrays[f'known/{field}'])
            for field, ids in description['ids'].items()
        },
        pairs=_select_prefix('pairs/', arrays),
    )


def _select_prefix(prefix, arrays):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _refuse_examples(name, *arguments, **keywords):
    raise UserError(f'the examples of {name} are not kept with a run; they are read from its data set alone.')
