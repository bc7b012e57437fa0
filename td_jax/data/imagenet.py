"""ImageNet as TFDS stores it (`imagenet2012`), read while training goes on.

Training examples come from lanes: even shares of the records, each of which is read in order of a
shuffled list of its files. The records of a lane's epoch are cut into windows, and each window is
shuffled. Since all lengths are known, the place of a step is computed, and reading starts at the window
that it falls in.
"""

import functools
import itertools
import os
from typing import NamedTuple

import numpy as np

from td_jax.data import images, prepared
from td_jax.data.base import EvaluationStream, Source, TrainStream
from td_jax.errors import UserError

NAME = 'imagenet2012'
# split -> (trained on, evaluated on); the labels of ImageNet's own test images are not public.
SPLITS = {'validation': ('train[:99%]', 'train[99%:]'), 'test': ('train', 'validation')}
MAX_LANES = 16
# Batches that are ready before they are asked for.
PREFETCHED = 2
# Files that an evaluation reads side by side.
EVALUATION_FILES = 8


class Span(NamedTuple):
    """Records of one file that follow one another."""

    path: str
    skip: int  # records before them
    take: int


def load(config, task) -> Source:
    """Opens the images; nothing is decoded yet.

    Examples: {'image': [rows, size, size, 3] uint8, 'labels': [rows] int32}. Inputs: {'image':
    [rows, size, size, 3]}, by images.inputs_of.

    Args:
      config: `config.dataset`, for the split, the image size, the resize and the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for the mean and the standard deviation; takes all
        classes and all examples.

    Raises:
      UserError: a part of the classes or examples is asked for, or the data is not prepared, or in another
        format than tfrecord.
    """
    for key in ('classes', 'examples_per_class'):
        if task[key]:
            owner = 'dataset' if task is config else 'teacher.dataset'
            raise UserError(
                f'{owner}.{key} is {task[key]}; imagenet is streamed whole: leave it at {type(task[key])()}.'
            )
    _tensorflow()
    builder = prepared.builder(NAME)
    if builder.info.file_format.value != 'tfrecord':
        raise UserError(
            f'{builder.data_path} is in the format {builder.info.file_format.value}; imagenet is read from '
            f'tfrecord: run `tfds build {NAME} --file_format=tfrecord`.'
        )
    train, evaluation = (spans_of(builder, split) for split in SPLITS[config.split])
    size = config.image_size
    features = builder.info.features

    return Source(
        name=NAME,
        train=TrainStream(
            count=_count(train),
            example={'image': np.zeros((1, size, size, 3), np.uint8), 'labels': np.zeros(1, np.int32)},
            open=functools.partial(_train_batches, train, features, config),
            host_bytes=_shuffled_bytes(builder, config, _count(train)),
        ),
        evaluation=evaluation_stream(evaluation, features, config),
        task='classification',
        label_names=tuple(features['label'].names),
        vocabularies={},
        tables=(),
        inputs=images.inputs_of(config, task, is_kept=False),
        picture=images.picture_of(config, is_kept=False),
    )


# --- Which records ---------------------------------------------------------------------------------


def spans_of(builder, split: str) -> list[Span]:
    """Where the records of a split are, in order."""
    return [Span(str(s.filename), s.skip, s.take) for s in builder.info.splits[split].file_instructions]


def _shuffled_bytes(builder, config, count):
    """What the examples take that are shuffled at once; those read ahead come on top."""
    whole = builder.info.splits['train']
    return min(config.shuffle_buffer, count) * whole.num_bytes // max(whole.num_examples, 1)


def _count(spans):
    return sum(span.take for span in spans)


def _cut(spans, start, stop):
    """The spans of the records from `start` to `stop`, counted through all of `spans`."""
    found, before = [], 0
    for span in spans:
        first, last = max(start - before, 0), min(stop - before, span.take)
        if first < last:
            found.append(Span(span.path, span.skip + first, last - first))
        before += span.take
    return found


def _share(spans, part, parts):
    """The part-th of `parts` shares, whose sizes differ by one at most."""
    count = _count(spans)
    return _cut(spans, part * count // parts, (part + 1) * count // parts)


def lane_count(num_files: int, batch_size: int) -> int:
    """How many lanes a batch is made of: a power of two that divides it, at most MAX_LANES or one a file."""
    lanes = 1
    while 2 * lanes <= min(num_files, MAX_LANES) and batch_size % (2 * lanes) == 0:
        lanes *= 2
    return lanes


def _train_records(spans, buffer, seed, step, batch_size, rows):
    """The asked rows of all batches from `step` on.

    Row r of a batch comes from lane r // (batch_size / lanes).

    Args:
      spans: all records.
      buffer: records that are shuffled at once, of all lanes together.
      seed, step, batch_size, rows: as of TrainStream.open.

    Returns:
      (records, position_of): a tf.data.Dataset of (index [] int64, record [] string), and the function from
      an index to the place [] of its record among those of all batches of a run.
    """
    tf = _tensorflow()
    lanes = lane_count(len(spans), batch_size)
    per_lane = batch_size // lanes
    window = max(buffer // lanes, 1)
    first_row, stop_row, _ = rows.indices(batch_size)
    first_lane, last_lane = first_row // per_lane, (stop_row - 1) // per_lane
    shares = [_share(spans, lane, lanes) for lane in range(lanes)]
    paths, skips, takes = (tf.constant(column) for column in zip(*itertools.chain(*shares), strict=True))
    skips, takes = tf.cast(skips, tf.int64), tf.cast(takes, tf.int64)
    bounds = tf.constant(np.cumsum([0, *map(len, shares)]))
    counts = tf.constant([_count(share) for share in shares], tf.int64)

    def records_of_epoch(lane, epoch, start):
        """A lane's records in the order of an epoch's files, from the start-th on."""
        order = _seed(tf, seed, 0, lane, epoch)
        files = tf.random.experimental.stateless_shuffle(tf.range(bounds[lane], bounds[lane + 1]), order)
        skip, take = tf.gather(skips, files), tf.gather(takes, files)
        passed = tf.clip_by_value(start - tf.cumsum(take, exclusive=True), 0, take)
        spans = tf.data.Dataset.from_tensor_slices((tf.gather(paths, files), skip + passed, take - passed))
        # Files that are passed as a whole are not opened.
        return spans.filter(lambda path, skip, take: take > 0).flat_map(
            lambda path, skip, take: tf.data.TFRecordDataset(path).skip(skip).take(take)
        )

    def records_of_lane(lane):
        """A lane's records, epoch after epoch without end, from `step` on."""
        begin = step * per_lane
        first_epoch, offset = begin // counts[lane], begin % counts[lane]
        first_window = offset // window

        def windows_of(epoch):
            passed = tf.where(epoch == first_epoch, first_window, 0)
            windows = records_of_epoch(lane, epoch, passed * window).window(window)
            return windows.enumerate(passed).map(lambda number, records: (epoch, number, records))

        def shuffled(epoch, number, records):
            order = tf.random.stateless_uniform(
                [], _seed(tf, seed, 1, lane, epoch, number), None, None, tf.int64
            )
            return records.shuffle(window, order, reshuffle_each_iteration=False)

        # The next window is read while this one is used.
        windows = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(windows_of).prefetch(1)
        return windows.flat_map(shuffled).skip(offset % window)

    asked = tf.data.Dataset.range(first_lane, last_lane + 1)
    records = asked.interleave(records_of_lane, cycle_length=len(asked), block_length=per_lane).enumerate()
    block = len(asked) * per_lane  # records of a step that are read

    def row_of(index):
        return first_lane * per_lane + index % block

    if (first_row, stop_row) != (first_lane * per_lane, (last_lane + 1) * per_lane):
        records = records.filter(
            lambda index, record: (row_of(index) >= first_row) & (row_of(index) < stop_row)
        )

    def position_of(index):
        return (step + index // block) * batch_size + row_of(index)

    return records, position_of


def _seed(tf, seed, *numbers):
    """A seed [2] for TensorFlow's stateless operations, another one for other numbers."""
    folded = tf.constant([seed, 0], tf.int64)
    for number in numbers:
        folded = tf.random.experimental.stateless_fold_in(folded, number)
    return folded


# --- From a record to pixels -----------------------------------------------------------------------


def _parsed(features, record):
    """{'image': what is stored, still encoded, 'label', 'file_name'}."""
    import tensorflow_datasets as tfds

    return features.deserialize_example(record, decoders={'image': tfds.decode.SkipDecoding()})


def decoded(encoded, seed=None, min_area: float = 1):
    """Decodes an image of any size, colours and format to three channels, whole or a random crop of it.

    The crop is that of the ViT paper's fine-tuning: a share of the area from min_area to 1 and an aspect
    ratio from images.ASPECT_RATIOS; an image that is too narrow for any is taken whole.

    Args:
      encoded: [] string; JPEG, PNG, GIF or BMP.
      seed: [2], of the crop.
      min_area: smallest share of the area; 1 takes the image whole.

    Returns:
      [height, width, 3] uint8.
    """
    tf = _tensorflow()

    def crop_of(shape):
        """[y, x, height, width] of a crop of an image [height, width, channels]."""
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            bounding_boxes=[[[0.0, 0.0, 1.0, 1.0]]],
            seed=seed,
            min_object_covered=0.0,
            aspect_ratio_range=images.ASPECT_RATIOS,
            area_range=(min_area, 1.0),
        )
        return tf.concat([begin[:2], size[:2]], axis=0)

    def jpeg():
        if min_area >= 1:
            return tf.io.decode_jpeg(encoded, channels=3)
        return tf.io.decode_and_crop_jpeg(encoded, crop_of(tf.io.extract_jpeg_shape(encoded)), channels=3)

    def other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        if min_area >= 1:
            return image
        y, x, height, width = tf.unstack(crop_of(tf.shape(image)))
        return image[y : y + height, x : x + width]

    return tf.cond(tf.io.is_jpeg(encoded), jpeg, other)


def _resized(image, config):
    """By config.resize: [height, width, 3] uint8 -> [size, size, 3] uint8, rounded.

    A byte a value is a quarter of what goes to the device.
    """
    tf = _tensorflow()
    # Added before resizing, where there are mostly fewer pixels; the cast then cuts off, which rounds.
    # (From float32 TensorFlow resizes faster than from uint8.)
    image = tf.cast(image, tf.float32) + 0.5
    size = (config.image_size, config.image_size)
    image = tf.image.resize(image, size, antialias=images.RESIZES[config.resize])
    return tf.ensure_shape(tf.cast(image, tf.uint8), (*size, 3))


def _example(parsed, image, config):
    """{'image': [size, size, 3] uint8, 'labels': [] int32}."""
    tf = _tensorflow()
    return {'image': _resized(image, config), 'labels': tf.cast(parsed['label'], tf.int32)}


# --- Batches ---------------------------------------------------------------------------------------


def _train_batches(spans, features, config, seed, step, batch_size, rows):
    """TrainStream.open."""
    tf = _tensorflow()
    records, position_of = _train_records(spans, config.shuffle_buffer, seed, step, batch_size, rows)

    def example(index, record):
        parsed = _parsed(features, record)
        crop_seed, mirror_seed = tf.unstack(
            tf.random.experimental.stateless_split(_seed(tf, seed, 2, position_of(index)), 2)
        )
        image = decoded(parsed['image'], crop_seed, config.min_crop_area)
        is_mirrored = tf.random.stateless_uniform([], mirror_seed) < config.mirror_rate
        # tf.reverse is ten times as fast as a slice with stride -1.
        image = tf.cond(is_mirrored, lambda: tf.reverse(image, [1]), lambda: image)
        return _example(parsed, image, config)

    size = len(range(*rows.indices(batch_size)))
    return _batches(records, example, features, size)


def evaluation_stream(spans, features, config) -> EvaluationStream:
    """Whole images of `spans`, resized as `config.dataset` says; `features` are those of TFDS."""
    return EvaluationStream(
        count=_count(spans), open=functools.partial(_evaluation_batches, spans, features, config)
    )


def _evaluation_batches(spans, features, config, batch_size, part, parts):
    """EvaluationStream.open."""
    tf, size = _tensorflow(), config.image_size
    own = _share(spans, part, parts)
    largest = max(_count(_share(spans, p, parts)) for p in range(parts))
    columns = list(zip(*own, strict=True)) or [np.zeros(0, str), np.zeros(0, int), np.zeros(0, int)]
    files = tf.data.Dataset.from_tensor_slices(tuple(map(tf.constant, columns)))
    records = files.interleave(
        lambda path, skip, take: (
            tf.data.TFRecordDataset(path).skip(tf.cast(skip, tf.int64)).take(tf.cast(take, tf.int64))
        ),
        cycle_length=EVALUATION_FILES,
        num_parallel_calls=EVALUATION_FILES,
        deterministic=True,
    ).enumerate()

    def example(index, record):
        parsed = _parsed(features, record)
        return _example(parsed, decoded(parsed['image']), config)

    found = _batches(records, example, features, batch_size)
    for _ in range(-(-largest // batch_size)):
        examples = next(found, None) or {
            'image': np.zeros((0, size, size, 3), np.uint8),
            'labels': np.zeros(0, np.int32),
        }
        count = len(examples['labels'])
        if count < batch_size:
            examples = {
                name: np.concatenate([array, np.zeros((batch_size - count, *array.shape[1:]), array.dtype)])
                for name, array in examples.items()
            }
        yield examples, (np.arange(batch_size) < count).astype(np.float32)


def _batches(records, example, features, batch_size):
    """Decodes records and puts them together.

    Args:
      records: dataset of (index [], record [] string).
      example: (index, record) -> {name: tensor}.
      features: of TFDS, to name what cannot be decoded.
      batch_size: rows of a batch; the last one may have fewer.

    Returns:
      Iterator over {name: [rows, ...]}.

    Raises:
      UserError: from the iterator, where a file cannot be read, an image not be decoded, or a label is none.
    """
    tf = _tensorflow()
    delivered = 0
    iterator = side_by_side(records, example, batch_size).as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            failed = records.skip(delivered * batch_size).take(batch_size)
            raise UserError(_what_failed(failed, features, error)) from error
        labels = batch['labels']
        is_right = (labels >= 0) & (labels < features['label'].num_classes)
        if not is_right.all():
            skipped = delivered * batch_size + int(np.argmin(is_right))
            raise UserError(_what_is_labelled(records.skip(skipped).take(1), features))
        yield batch
        delivered += 1


def side_by_side(records, example, batch_size: int):
    """Applies `example` to several records at a time; a tf.data.Dataset of batches in the records' order."""
    tf = _tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    # An image's own operations gain nothing from threads beside those of other images.
    options.threading.max_intra_op_parallelism = 1
    # Left to itself, it keeps ever more batches ready, hundreds of megabytes each.
    options.autotune.enabled = False
    examples = records.map(example, num_parallel_calls=os.cpu_count())
    return examples.batch(batch_size).prefetch(PREFETCHED).with_options(options)


def _what_is_labelled(record, features):
    """Says which image has a label that is none; `record` is a dataset of that one."""
    ((_, encoded),) = record
    parsed = _parsed(features, encoded)
    return (
        f'dataset {NAME}: the label of the image {parsed["file_name"].numpy().decode(errors="replace")} is '
        f'{int(parsed["label"])}; it must be from 0 to {features["label"].num_classes - 1}. Mend or prepare '
        'the data set anew.'
    )


def _what_failed(records, features, error):
    """Says which of the records cannot be decoded; where it is none of them, what the error says."""
    tf = _tensorflow()
    try:
        for _, record in records:
            parsed = _parsed(features, record)
            try:
                decoded(parsed['image'])
            except tf.errors.OpError as reason:
                name = parsed['file_name'].numpy().decode()
                return f'{NAME}: the image {name} cannot be decoded ({prepared.reason(reason)}).'
    except tf.errors.OpError as reason:
        error = reason
    return f'{NAME} cannot be read: {prepared.reason(error)}.'


@functools.cache
def _tensorflow():
    """TensorFlow, imported when it is needed: it takes seconds to start. It leaves GPUs to JAX."""
    import tensorflow as tf

    if tf.config.get_visible_devices('GPU'):
        tf.config.set_visible_devices([], 'GPU')
    return tf
