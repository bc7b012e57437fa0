"""Reads the arrays of a folder's model.safetensors, in one file or in several that an index names.

The format is that of transformers: `weight_map` in model.safetensors.index.json has the name of a file in the
same folder for each array.
"""

import re
from collections.abc import Iterable

import numpy as np

from td_jax.errors import UserError, failure_as_user_error
from td_jax.files import workdir

FILE = 'model.safetensors'
# Present where the arrays are in several files.
INDEX = f'{FILE}.index.json'
# The name of one of these: no path, and no pattern of a download.
SHARD = re.compile(r'[^/\\*?\[\]]+\.safetensors')
REMEDY = 'get the checkpoint once more, with all its files'


def find(folder):
    """The path of a folder's FILE, or else of its INDEX; None without either."""
    return next((folder / name for name in (FILE, INDEX) if (folder / name).is_file()), None)


def read_arrays(path) -> dict[str, np.ndarray]:
    """Reads the arrays of FILE, or of all files that INDEX names, by name.

    The names in all files are compared with INDEX before an array is read.

    Args:
      path: by `find`.

    Raises:
      UserError: a file is damaged or missing, or the files and INDEX do not name the same arrays.
    """
    if path.name == FILE:
        return _read_file(path)
    shards = read_index(path)
    for shard, expected in shards.items():
        _check_shard(path, path.parent / shard, expected)
    return {name: array for shard in shards for name, array in _read_file(path.parent / shard).items()}


def read_index(path) -> dict[str, list[str]]:
    """Reads INDEX: {name of a file: names of the arrays in it}.

    Raises:
      UserError: it has no weight_map, or one that names something else than files in its folder.
    """
    weight_map = (workdir.read_json(path) or {}).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{path} has no weight_map, the file of each array by its name; {REMEDY}.')
    shards = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise UserError(
                f'{path}: the file of {name} is {shard!r}; it is the name of a .safetensors in the folder.'
            )
        shards.setdefault(shard, []).append(name)
    return shards


def _check_shard(index, path, expected: Iterable[str]):
    """Refuses a file that is missing, or whose arrays are not those that an index names."""
    # Imported here, because only such files need it.
    import safetensors

    if not path.is_file():
        raise UserError(f'{path.parent} holds no {path.name}, which {index.name} names; {REMEDY}.')
    with _failures(path), safetensors.safe_open(path, 'numpy') as file:
        names = set(file.keys())
    for name in expected:
        if name not in names:
            raise UserError(f'{path} holds no {name}, which {index.name} says is there; {REMEDY}.')
    if others := sorted(names.difference(expected)):
        raise UserError(f'{path} holds {others[0]}, which {index.name} does not say is there; {REMEDY}.')


def _read_file(path):
    # Imported here, because only such files need it.
    from safetensors import numpy as safetensors_numpy

    with _failures(path):
        return safetensors_numpy.load_file(path)


def _failures(path):
    return failure_as_user_error(f'{path} is damaged or no .safetensors', 'delete it and get it once more')
