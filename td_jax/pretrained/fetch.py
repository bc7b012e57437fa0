"""Fetches the files of a checkpoint from a disk, a URL or the hub of Hugging Face."""

import hashlib
import http.client
import os
import pathlib
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile

from etils import epath

from td_jax.errors import UserError, reason
from td_jax.files import workdir
from td_jax.pretrained import preprocessing, weights
from td_jax.pretrained.hugging_face import CONFIG

# The published checkpoints of the ViT paper and of BiT.
PUBLIC, PUBLIC_BIT = 'gs://vit_models/imagenet21k', 'gs://bit_models'
HUB = 'https://huggingface.co'
TIMEOUT = 30  # Seconds without data until a download is aborted.


def fetch(location: str) -> epath.Path:
    """Returns the path of a checkpoint on this machine, after downloading it if necessary.

    Args:
      location: as for `pretrained.read`.

    Raises:
      UserError: it does not exist, or it cannot be downloaded.
    """
    if location.startswith('hf://'):
        return _download_snapshot(location)
    if '://' in location:
        return _download(location)
    path = workdir.resolve(location)
    if not path.exists():
        raise UserError(_explain_absence(path))
    return path


def _explain_absence(path):
    if path.suffix != '.npz':
        return (
            f'{path} is not there; give an .npz of google-research/vision_transformer or of BiT, or the '
            'folder of a Hugging Face ViT, DeiT or DINOv2.'
        )
    return (
        f'{path} is not there. Get {path.name}, if it is of the ViT paper from '
        f'{_to_url(f"{PUBLIC}/{path.name}")}, if it is of BiT from {_to_url(f"{PUBLIC_BIT}/{path.name}")}, '
        'and put it there, or give its address instead.'
    )


def _to_url(location):
    if location.startswith('gs://'):
        return 'https://storage.googleapis.com/' + urllib.parse.quote(location.removeprefix('gs://'))
    return location


def _download(location):
    """Downloads a file from gs:// or https:// once, and returns its path."""
    try:
        url = urllib.parse.urlsplit(_to_url(location))
    except ValueError as error:
        raise UserError(f'{location} is no address of a file: {reason(error)}.') from error
    *folders, name = urllib.parse.unquote(url.path).split('/')
    parts = [part for part in folders if part]
    if url.scheme != 'https' or not url.hostname or not name or {'.', '..'} & {*parts, name}:
        raise UserError(
            f'{location} is no address of a file; it is https://HOST/FILE, gs://BUCKET/FILE, hf://OWNER/NAME '
            'or a path.'
        )
    if url.query:
        # The query may select the file.
        name = f'{hashlib.sha256(url.query.encode()).hexdigest()[:8]}-{name}'
    cache = workdir.resolve(os.environ.get('TD_JAX_CACHE') or '~/.cache/td_jax')
    path = cache.joinpath(url.hostname, *parts, name)
    if path.exists():
        return path
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A temporary name until it is complete, so that a partial file is never read.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.', suffix='.part', delete=False) as file:
            temporary = file.name
            _copy(location, url.geturl(), file)
            file.flush()
            os.fsync(file.fileno())
        if not zipfile.is_zipfile(temporary):
            raise OSError('what came is no .npz')
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'{location} cannot be downloaded ({reason(error)}). Get {name} from {url.geturl()} '
            f'where there is a network and put it at {path}, or give the path where it is.'
        ) from error
    finally:
        # Exists only if the download failed.
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)
    return path


def _copy(location, url, file):
    """Copies the content of a URL to an open file.

    Raises:
      OSError, http.client.HTTPException: it does not exist, cannot be reached, or ended early.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            print(f'td_jax: downloading {url}', file=sys.stderr)
            shutil.copyfileobj(response, file)
            length = response.headers['Content-Length']
            # A broken connection looks like the end of the content.
            if length is not None and file.tell() != int(length):
                raise OSError(f'it ended after {file.tell()} of {length} bytes')
    except urllib.error.HTTPError as error:
        with error:
            if not location.startswith('gs://') or error.code not in (401, 403):
                raise OSError(f'{error.code} {error.reason}') from error
        _copy_private(location, file)


def _copy_private(location, file):
    """Copies an object of a private bucket, with the credentials of this machine."""
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(location, 'rb') as source:
            shutil.copyfileobj(source, file)
    except tf.errors.OpError as error:
        raise OSError(f'the bucket is private, and {error.message}') from error


def _download_snapshot(location):
    """Downloads the files of hf://OWNER/NAME and returns their folder; preprocessing is optional."""
    name = location.removeprefix('hf://')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        raise UserError(f'{location} is no name of a Hugging Face model; it is hf://OWNER/NAME.')
    try:
        return _download_parts(name)
    except UserError:
        raise
    except Exception as error:  # Its errors and those of its network library have no common base.
        raise UserError(
            f'{location} cannot be downloaded ({reason(error)}). Get {CONFIG}, {weights.FILE} and '
            f'{preprocessing.FILE} from {HUB}/{name} where there is a network, put them into a folder and '
            'give its path instead.'
        ) from error


def _download_parts(name):
    """Downloads the files of a model, those that its index names included."""
    # Imported here, because only hf:// needs it.
    import huggingface_hub

    files = [CONFIG, weights.FILE, weights.INDEX, preprocessing.FILE]
    folder = epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    path = weights.find(folder)
    if path is None or path.name == weights.FILE:
        return folder
    # The name of the folder is the commit; a newer one may have another index.
    folder = huggingface_hub.snapshot_download(
        name, revision=folder.name, allow_patterns=[*files, *weights.read_index(path)]
    )
    return epath.Path(folder)
