"""Data sets that TFDS has prepared or can prepare."""

import contextlib
import difflib
import hashlib
import re
import socket
import urllib.parse

from td_jax.errors import Missing, UserError

# NAME, NAME/CONFIG or either with :VERSION. What else TFDS takes leads to code and data of others:
# NAMESPACE:NAME to those of a community or of Hugging Face, and NAME/data_dir=PATH to a folder whose files
# name modules that are then imported.
_NAME = re.compile(r'[A-Za-z]\w*(/\w[\w.+-]*)?(:(\d+|\*)(\.(\d+|\*)){2})?', re.ASCII)


def reason(error) -> str:
    """Shortens an error of TensorFlow or the file system to one line, without the operations behind it."""
    message = re.sub(r'\{\{.*?\}\}|\[+Op:.*|\[\[.*', '', getattr(error, 'message', str(error))).strip()
    return message.split('\n', 1)[0].strip(' .') or type(error).__name__


@contextlib.contextmanager
def errors_as_user_error(name: str):
    """Turns what TFDS, TensorFlow and the file system raise while data are read into a one-line UserError.

    Raises:
      UserError: in place of any other error.
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

    Args:
      name: of a data set of TFDS itself. It may come from a run that somebody else made, so it is held to
        be no more than that.

    Raises:
      UserError: it is no such name, or there is none of this name.
      Missing: it is missing and cannot be downloaded; says how to prepare it.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f'dataset.tfds {name[:100]!r} is no name of a data set of TFDS; write NAME, NAME/CONFIG or '
            'NAME/CONFIG:VERSION, such as oxford_flowers102 or cifar10_corrupted/fog_1.'
        )
    # Imported here: TensorFlow takes seconds to start, and other data sets do without it.
    import tensorflow_datasets as tfds

    try:
        tfds_builder = tfds.builder(name)
    except Exception as error:
        # Community data sets would be looked up in a bucket, for minutes where there is no network.
        known = tfds.list_builders(with_community_datasets=False)
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f'; did you mean {nearest[0]}?' if nearest else '.'
        why = reason(error).partition(' Here are ')[0][:200]
        raise UserError(f'TFDS has no data set {name} ({why}){hint}') from error
    if tfds_builder.is_prepared():
        return tfds_builder
    try:
        # TFDS retries a download for minutes; without a network the name look-up fails at once.
        socket.getaddrinfo(urllib.parse.urlparse(tfds_builder.info.homepage).hostname, 443)
        tfds_builder.download_and_prepare()
    except Exception as error:
        # The folder of all data sets; in it are the name, its config if it has one, and the version.
        root = tfds_builder.data_path.parents[tfds_builder.info.full_name.count('/')]
        raise Missing(
            f'{name} is not prepared under {root} and cannot be downloaded '
            f'({type(error).__name__}): run `tfds build {name}` where there is a network and set '
            'TFDS_DATA_DIR to the folder it wrote to.'
        ) from error
    return tfds_builder


def known_by(builder) -> dict[str, str]:
    """Makes Source.known_by of a data set that TFDS has prepared, from what TFDS stores about its records."""
    identity = {'TFDS': builder.info.full_name}
    for name, split in builder.info.splits.items():
        lengths = ' '.join(map(str, split.shard_lengths))
        identity[f'split {name}'] = (
            f'{split.num_examples} examples of {int(split.num_bytes)} bytes in '
            f'{len(split.shard_lengths)} files ({hashlib.sha256(lengths.encode()).hexdigest()[:8]})'
        )
    return identity


def check_format(builder):
    """Refuses a data set that was prepared in another format than tfrecord.

    Raises:
      UserError: says how to prepare it.
    """
    file_format, name = builder.info.file_format.value, builder.info.full_name.rpartition('/')[0]
    if file_format != 'tfrecord':
        raise UserError(
            f'{builder.data_path} is in the format {file_format}; {name} is read from tfrecord: run '
            f'`tfds build {name} --file_format=tfrecord`.'
        )
