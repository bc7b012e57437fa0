"""Data sets that TFDS has prepared, or can."""

import contextlib
import re
import socket
import urllib.parse

from td_jax.errors import UserError


def reason(error) -> str:
    """What an error of TensorFlow or the file system says, in one line without the operations behind it."""
    message = re.sub(r'\{\{.*?\}\}|\[+Op:.*|\[\[.*', '', getattr(error, 'message', str(error))).strip()
    return message.split('\n', 1)[0].strip(' .') or type(error).__name__


@contextlib.contextmanager
def reading(name: str):
    """Makes one line of what TFDS, TensorFlow and the file system raise while a prepared data set is read.

    Raises:
      UserError: instead of it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'dataset {name} cannot be read: {reason(error)[:300]}. Prepare it anew with `tfds build {name}`.'
        ) from error


def builder(name: str):
    """The TFDS builder of a data set that is ready to read.

    It is looked for where TFDS always does: TFDS_DATA_DIR, or ~/tensorflow_datasets. One that is missing
    is downloaded.

    Raises:
      UserError: it is missing and cannot be downloaded; says how to prepare it.
    """
    # Imported here: TensorFlow takes seconds to start, and other data sets do without it.
    import tensorflow_datasets as tfds

    found = tfds.builder(name)
    if found.is_prepared():
        return found
    try:
        # TFDS retries a download for minutes; without a network the name look-up fails at once.
        socket.getaddrinfo(urllib.parse.urlparse(found.info.homepage).hostname, 443)
        found.download_and_prepare()
    except Exception as error:
        # The folder of all data sets; in it are the name, its config if it has one, and the version.
        root = found.data_path.parents[len(name.split('/'))]
        raise UserError(
            f'{name} is not prepared under {root} and cannot be downloaded '
            f'({type(error).__name__}): run `tfds build {name}` where there is a network and set '
            'TFDS_DATA_DIR to the folder it wrote to.'
        ) from error
    return found
