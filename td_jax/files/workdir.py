"""The files of a run, other than its checkpoints and metrics. Nothing is ever half-written."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import tempfile

from td_jax.errors import UserError

CONFIG, RESULT = 'config.json', 'result.json'


def resolve(path: str) -> pathlib.Path:
    """The absolute path of a workdir, ~ expanded.

    Raises:
      UserError: it is the address of a bucket or the like, or ~ names a user that is not there.
    """
    if re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', path):
        raise UserError(
            f'{path} is an address and no folder; mount the bucket, such as gs://BUCKET with `gcsfuse BUCKET '
            'FOLDER`, and give the folder, as in --workdir=FOLDER/PATH. For that flag, launch/tpu_vm.sh and '
            'launch/gke.sh do it by themselves.'
        )
    try:
        return pathlib.Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f'{path} has no home directory behind its ~.') from error


@contextlib.contextmanager
def opened(path: pathlib.Path):
    """Makes the folder if it is missing and keeps it for this process alone.

    Raises:
      UserError: it cannot be made or written, or another process trains in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / '.lock', 'w')
    except OSError as error:
        raise UserError(
            f'workdir {path} cannot be written ({error.strerror}); choose another --workdir.'
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f'workdir {path} is in use by another process; wait for it or choose another --workdir.'
            ) from error
        yield


def write(path: pathlib.Path, text: str):
    """Writes a file whole or not at all, even if the machine stops.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile('w', dir=path.parent, prefix='.', delete=False) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}.') from error
    finally:
        # Only what did not become the file is still there.
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict | None:
    """The object in a JSON file, or None where there is no file.

    Raises:
      UserError: it is not readable as JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f'{path} cannot be read ({error}); mend or delete it, or choose another folder.'
        ) from error
    if not isinstance(content, dict):
        raise UserError(f'{path} does not hold a JSON object; mend or delete it, or choose another folder.')
    return content
