"""Images that are read while training goes on, from the records of TFDS or from files.

Training examples come from lanes: even shares of the records, each of which is read in order of a
shuffled list of its spans. The records of a lane's epoch are cut into windows, and each window is
shuffled. Since all lengths are known, the place of a step is computed, and reading starts at the window
that it falls in.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np

from td_jax.data import base as data
from td_jax.data import decoding, images, prepared, resizing
from td_jax.data.base import EvaluationStream, Source, TrainStream
from td_jax.data.resizing import View
from td_jax.errors import UserError

MAX_LANES = 16
# Batches that are ready before they are asked for.
PREFETCHED = 2
# Spans that an evaluation reads side by side.
EVALUATION_FILES = 8
# Images that are decoded together where all are kept.
KEPT_AT_ONCE = 256


class Span(NamedTuple):
    """Records of one file, or of another thing with an order, that follow one another."""

    path: str
    skip: int  # records before them
    take: int


@dataclasses.dataclass(frozen=True)
class Records:
    """Encoded images with their labels, and how to come by them."""

    name: str  # what a person calls them all
    num_classes: int
    place: Hashable  # where they lie; those of another place are others
    # open(path [] string, skip [] int64, take [] int64) -> tf.data.Dataset of the records of a Span
    open: Callable[..., Any] = dataclasses.field(compare=False)
    # parsed(record) -> {'image': [] string, still encoded, 'label': [] whole number, 'file_name': [] string}
    parsed: Callable[..., dict] = dataclasses.field(compare=False)
    # decode(encoded, seed, min_area) -> [height, width, 3] uint8, as decode_by_tensorflow does it
    decode: Callable[..., Any] = dataclasses.field(compare=False)


# How each image of an example is made of a record: of the student, and of a teacher that is shown others.
Views = dict[str, View]


def source_of(
    name: str,
    label_names: tuple[str, ...],
    parts: tuple[tuple[Records, list[Span]], tuple[Records, list[Span]]],
    config,
    task,
    host_bytes: int,
    beside: images.OfTeacher | None = None,
) -> Source:
    """A Source of images that are streamed; nothing is decoded yet.

    Examples: {'image': [rows, side, side, 3] uint8, 'labels': [rows] int32}, and 'teacher_image' where a
    teacher is shown others. Inputs: {'image': [rows, side, side, 3]}, by images.inputs_of.

    Args:
      name: what a person calls it.
      label_names: of the classes, in the order of their numbers.
      parts: of training and of evaluation, the records, and which of them.
      config: `config.dataset`, for the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for how a model is shown images.
      host_bytes: of TrainStream.
      beside: how a teacher is shown the same images, where that is not as the student is.
    """
    (train_records, train), (records, evaluation) = parts
    training, evaluated = views_of(config, task, beside)
    inputs = functools.partial(images.inputs_of, config, is_kept=False, is_native=False)
    return Source(
        name=name,
        train=TrainStream(
            count=count_of(train),
            example={
                **{field: np.zeros((1, *_shape(view)), np.uint8) for field, view in training.items()},
                'labels': np.zeros(1, np.int32),
            },
            open=functools.partial(train_batches, lambda number: (train_records, train), config, training),
            host_bytes=host_bytes,
            pass_over=lambda number: evaluation_stream(train_records, train, training),
        ),
        evaluation=evaluation_stream(records, evaluation, evaluated),
        task='classification',
        label_names=label_names,
        vocabularies={},
        tables=(),
        inputs=inputs(task),
        inputs_for=inputs,
        picture=images.picture_of(config, task, is_native=False),
    )


def views_of(config, task, beside: images.OfTeacher | None) -> tuple[Views, Views]:
    """How examples of training and of evaluation are made of whole images.

    Args:
      config, task, beside: as of source_of.
    """
    own = {images.IMAGE: images.view_of(config, task)}
    if beside is None:
        return own, own
    return tuple({**own, images.TEACHER_IMAGE: view} for view in beside)


def _shape(view):
    return view.side, view.side, 3


def whole_only(name: str, config, task):
    """Refuses a part of the classes or examples where all are streamed.

    Args:
      name: what a person calls the data set.
      config: `config.dataset`.
      task: that, or `config.teacher.dataset`.

    Raises:
      UserError: names the key.
    """
    whole_test(name, config)
    for key in ('classes', 'examples_per_class'):
        if task[key]:
            owner = 'dataset' if task is config else 'teacher.dataset'
            raise UserError(
                f'{owner}.{key} is {task[key]}; {name} is streamed whole: leave it at {type(task[key])()}.'
            )


def whole_test(name: str, config):
    """Refuses half of the test where it is streamed; of a data set's name and `config.dataset`.

    Raises:
      UserError: says what to do.
    """
    if data.describe_part(config):
        kept = ', or raise dataset.kept_gb, which keeps them in memory' if config.name in images.KEPT else ''
        raise UserError(
            f'dataset.test_part is {config.test_part}, which takes the content of all test images, but '
            f'{name} is streamed: leave it at all{kept}.'
        )


# --- Which records ---------------------------------------------------------------------------------


def count_of(spans: list[Span]) -> int:
    """How many records there are in some spans."""
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
    count = count_of(spans)
    return _cut(spans, part * count // parts, (part + 1) * count // parts)


def lane_count(num_files: int, batch_size: int) -> int:
    """How many lanes a batch is made of: a power of two that divides it, at most MAX_LANES or one a file."""
    lanes = 1
    while 2 * lanes <= min(num_files, MAX_LANES) and batch_size % (2 * lanes) == 0:
        lanes *= 2
    return lanes


def _train_records(records, spans, buffer, seed, step, batch_size, rows):
    """The asked rows of all batches from `step` on.

    Row r of a batch comes from lane r // (batch_size / lanes).

    Args:
      records, spans: all of them.
      buffer: records that are shuffled at once, of all lanes together.
      seed, step, batch_size, rows: as of TrainStream.open.

    Returns:
      (dataset, position_of): a tf.data.Dataset of (index [] int64, record), and the function from
      an index to the place [] of its record among those of all batches of a run.
    """
    tf = tensorflow()
    lanes = lane_count(len(spans), batch_size)
    per_lane = batch_size // lanes
    window = max(buffer // lanes, 1)
    first_row, stop_row, _ = rows.indices(batch_size)
    first_lane, last_lane = first_row // per_lane, (stop_row - 1) // per_lane
    shares = [_share(spans, lane, lanes) for lane in range(lanes)]
    paths, skips, takes = (tf.constant(column) for column in zip(*itertools.chain(*shares), strict=True))
    skips, takes = tf.cast(skips, tf.int64), tf.cast(takes, tf.int64)
    bounds = tf.constant(np.cumsum([0, *map(len, shares)]))
    counts = tf.constant([count_of(share) for share in shares], tf.int64)

    def records_of_epoch(lane, epoch, start):
        """A lane's records in the order of an epoch's files, from the start-th on."""
        order = _seed(tf, seed, 0, lane, epoch)
        files = tf.random.experimental.stateless_shuffle(tf.range(bounds[lane], bounds[lane + 1]), order)
        skip, take = tf.gather(skips, files), tf.gather(takes, files)
        passed = tf.clip_by_value(start - tf.cumsum(take, exclusive=True), 0, take)
        spans = tf.data.Dataset.from_tensor_slices((tf.gather(paths, files), skip + passed, take - passed))
        # Files that are passed as a whole are not opened.
        return spans.filter(lambda path, skip, take: take > 0).flat_map(records.open)

    def records_of_lane(lane):
        """A lane's records, epoch after epoch without end, from `step` on."""
        begin = step * per_lane
        first_epoch, offset = begin // counts[lane], begin % counts[lane]
        first_window = offset // window

        def windows_of(epoch):
            passed = tf.where(epoch == first_epoch, first_window, 0)
            windows = records_of_epoch(lane, epoch, passed * window).window(window)
            return windows.enumerate(passed).map(lambda number, found: (epoch, number, found))

        def shuffled(epoch, number, found):
            order = tf.random.stateless_uniform(
                [], _seed(tf, seed, 1, lane, epoch, number), None, None, tf.int64
            )
            return found.shuffle(window, order, reshuffle_each_iteration=False)

        # The next window is read while this one is used.
        windows = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(windows_of).prefetch(1)
        return windows.flat_map(shuffled).skip(offset % window)

    asked = tf.data.Dataset.range(first_lane, last_lane + 1)
    found = asked.interleave(records_of_lane, cycle_length=len(asked), block_length=per_lane).enumerate()
    block = len(asked) * per_lane  # records of a step that are read

    def row_of(index):
        return first_lane * per_lane + index % block

    if (first_row, stop_row) != (first_lane * per_lane, (last_lane + 1) * per_lane):
        found = found.filter(lambda index, record: (row_of(index) >= first_row) & (row_of(index) < stop_row))

    def position_of(index):
        return (step + index // block) * batch_size + row_of(index)

    return found, position_of


def _seed(tf, seed, *numbers):
    """A seed [2] for TensorFlow's stateless operations, another one for other numbers."""
    folded = tf.constant([seed, 0], tf.int64)
    for number in numbers:
        folded = tf.random.experimental.stateless_fold_in(folded, number)
    return folded


# --- From a record to pixels -----------------------------------------------------------------------


def decode_by_tensorflow(encoded, seed=None, min_area: float = 1):
    """Decodes an image as TFDS does, whole or a random crop of it.

    Args:
      encoded: [] string; JPEG, PNG, GIF or BMP, of any size and colours.
      seed: [2], of the crop.
      min_area: of the crop, by _crop_of; 1 takes the image whole.

    Returns:
      [height, width, 3] uint8.
    """
    tf = tensorflow()

    def jpeg():
        if min_area >= 1:
            return tf.io.decode_jpeg(encoded, channels=3)
        crop = _crop_of(tf.io.extract_jpeg_shape(encoded), seed, min_area)
        return tf.io.decode_and_crop_jpeg(encoded, crop, channels=3)

    def other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return _cropped(image, seed, min_area)

    return tf.cond(tf.io.is_jpeg(encoded), jpeg, other)


def decode_by_pil(encoded, seed=None, min_area: float = 1):
    """Decodes a file by decoding.decode, whole or a random crop of it; the rest is as above."""
    tf = tensorflow()

    def decode(content):
        # Outside of a tf.data.Dataset it comes as an array of no axes.
        return decoding.decode(content if isinstance(content, bytes) else content.item())

    image = tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
    return _cropped(tf.ensure_shape(image, (None, None, 3)), seed, min_area)


def _crop_of(shape, seed, min_area):
    """[y, x, height, width] of a random crop of an image [height, width, channels].

    It is that of the ViT paper's fine-tuning: a share of the area from min_area to 1 and an aspect ratio from
    images.ASPECT_RATIOS; an image that is too narrow for any is taken whole.
    """
    tf = tensorflow()
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=[[[0.0, 0.0, 1.0, 1.0]]],
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=images.ASPECT_RATIOS,
        area_range=(min_area, 1.0),
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def _cropped(image, seed, min_area):
    """A random crop of a decoded image; the whole for a min_area of 1."""
    if min_area >= 1:
        return image
    tf = tensorflow()
    y, x, height, width = tf.unstack(_crop_of(tf.shape(image), seed, min_area))
    return image[y : y + height, x : x + width]


def shown(image, view: View, is_rounded: bool = True):
    """An image as a view shows it.

    Args:
      image: [height, width, 3] uint8.
      view: how it is shown.
      is_rounded: whether the result is uint8: a byte a value is a quarter of what goes to the device. Else it
        is float32, and whole numbers where Pillow resizes.

    Returns:
      [side, side, 3]
    """
    tf, how = tensorflow(), resizing.RESIZES[view.resize]
    if how.is_pillow:
        by_pillow = functools.partial(resizing.by_pillow, view=view)
        image = tf.numpy_function(by_pillow, [image], tf.uint8, stateful=False)
    else:
        height, width = view.scaled(*tf.unstack(tf.shape(image)[:2]), tf.minimum)
        # Added before resizing, where there are mostly fewer pixels; the cast then cuts off, which rounds.
        # (From float32 TensorFlow resizes faster than from uint8.)
        image = tf.cast(image, tf.float32) + (0.5 if is_rounded else 0.0)
        image = tf.image.resize(image, (height, width), how.method)
        if not view.is_whole:
            top, left = ((length - view.side) // 2 for length in (height, width))
            image = image[top : top + view.side, left : left + view.side]
    return tf.ensure_shape(tf.cast(image, tf.uint8 if is_rounded else tf.float32), _shape(view))


def _example(parsed, image, views):
    """{field: [side, side, 3] uint8 of each view, 'labels': [] int32}."""
    tf = tensorflow()
    made = {field: shown(image, view) for field, view in views.items()}
    return {**made, 'labels': tf.cast(parsed['label'], tf.int32)}


# --- Batches ---------------------------------------------------------------------------------------


def train_batches(records_of, config, views, seed, step, batch_size, rows):
    """TrainStream.open, after what makes (records, spans) of a seed's number, `config.dataset` and Views."""
    tf, (records, spans) = tensorflow(), records_of(seed)
    if config.min_crop_area < 1:
        # All of the crop is shown.
        views = {field: View(view.side, view.resize) for field, view in views.items()}
    found, position_of = _train_records(records, spans, config.shuffle_buffer, seed, step, batch_size, rows)

    def example(index, record):
        parsed = records.parsed(record)
        crop_seed, mirror_seed = tf.unstack(
            tf.random.experimental.stateless_split(_seed(tf, seed, 2, position_of(index)), 2)
        )
        image = records.decode(parsed['image'], crop_seed, config.min_crop_area)
        is_mirrored = tf.random.stateless_uniform([], mirror_seed) < config.mirror_rate
        # tf.reverse is ten times as fast as a slice with stride -1.
        image = tf.cond(is_mirrored, lambda: tf.reverse(image, [1]), lambda: image)
        return _example(parsed, image, views)

    return _batches(records, found, example, len(range(*rows.indices(batch_size))))


def evaluation_stream(
    records: Records, spans: list[Span], views: Views, files_at_once: int = EVALUATION_FILES
) -> EvaluationStream:
    """Images of some spans, as views show them; records of `files_at_once` spans alternate."""
    opened = functools.partial(_evaluation_batches, records, spans, views, files_at_once)
    return EvaluationStream(count=count_of(spans), open=opened)


def kept(records: Records, spans: tuple[Span, ...], views: Views) -> dict[str, np.ndarray]:
    """All examples of some spans, in their order, in memory.

    Of two parts of a data set the same arrays are given again.

    Raises:
      UserError: what the stream raises.
    """
    return _kept(records, spans, tuple(views.items()))


@functools.lru_cache(maxsize=4)
def _kept(records, spans, views):
    """`kept`, of what can be looked up."""
    # One span after the other: what is held back is the last of them.
    stream = evaluation_stream(records, list(spans), dict(views), files_at_once=1)
    found = {field: np.empty((stream.count, *_shape(view)), np.uint8) for field, view in views}
    found['labels'] = np.empty(stream.count, np.int32)
    start = 0
    for examples, mask in stream.open(KEPT_AT_ONCE, 0, 1):
        stop = start + int(mask.sum())
        for name, array in examples.items():
            found[name][start:stop] = array[: stop - start]
        start = stop
    for array in found.values():
        array.flags.writeable = False
    return found


def contents(records: Records, spans: list[Span]) -> Iterator[bytes]:
    """The encoded images of some spans, in the order of `kept`."""
    for _, record in _evaluation_records(records, _share(spans, 0, 1), files_at_once=1):
        yield records.parsed(record)['image'].numpy()


def _evaluation_records(records, spans, files_at_once):
    """A tf.data.Dataset of (index [], record) of some spans, in the order of an evaluation."""
    tf = tensorflow()
    columns = list(zip(*spans, strict=True)) or [np.zeros(0, str), np.zeros(0, int), np.zeros(0, int)]
    files = tf.data.Dataset.from_tensor_slices(tuple(map(tf.constant, columns)))
    return files.interleave(
        lambda path, skip, take: records.open(path, tf.cast(skip, tf.int64), tf.cast(take, tf.int64)),
        cycle_length=files_at_once,
        num_parallel_calls=files_at_once,
        deterministic=True,
    ).enumerate()


def _evaluation_batches(records, spans, views, files_at_once, batch_size, part, parts):
    """EvaluationStream.open."""
    own = _share(spans, part, parts)
    largest = max(count_of(_share(spans, p, parts)) for p in range(parts))

    def example(index, record):
        parsed = records.parsed(record)
        return _example(parsed, records.decode(parsed['image']), views)

    found = _batches(records, _evaluation_records(records, own, files_at_once), example, batch_size)
    for _ in range(-(-largest // batch_size)):
        examples = next(found, None) or {
            **{field: np.zeros((0, *_shape(view)), np.uint8) for field, view in views.items()},
            'labels': np.zeros(0, np.int32),
        }
        rows = len(examples['labels'])
        if rows < batch_size:
            examples = {
                name: np.concatenate([array, np.zeros((batch_size - rows, *array.shape[1:]), array.dtype)])
                for name, array in examples.items()
            }
        yield examples, (np.arange(batch_size) < rows).astype(np.float32)


def _batches(records, found, example, batch_size):
    """Decodes records and puts them together.

    Args:
      records: where they are from, to name what cannot be decoded.
      found: dataset of (index [], record).
      example: (index, record) -> {name: tensor}.
      batch_size: rows of a batch; the last one may have fewer.

    Returns:
      Iterator over {name: [rows, ...]}.

    Raises:
      UserError: from the iterator, where a file cannot be read, an image not be decoded, or a label is none.
    """
    tf = tensorflow()
    delivered = 0
    iterator = side_by_side(found, example, batch_size).as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            failed = found.skip(delivered * batch_size).take(batch_size)
            raise UserError(_what_failed(records, failed, error)) from error
        labels = batch['labels']
        is_right = (labels >= 0) & (labels < records.num_classes)
        if not is_right.all():
            skipped = delivered * batch_size + int(np.argmin(is_right))
            raise UserError(_what_is_labelled(records, found.skip(skipped).take(1)))
        yield batch
        delivered += 1


def side_by_side(records, example, batch_size: int):
    """Applies `example` to several records at a time; a tf.data.Dataset of batches in the records' order."""
    tf = tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    # An image's own operations gain nothing from threads in addition to those of other images.
    options.threading.max_intra_op_parallelism = 1
    # Left to itself, it keeps ever more batches ready, hundreds of megabytes each.
    options.autotune.enabled = False
    examples = records.map(example, num_parallel_calls=os.cpu_count())
    return examples.batch(batch_size).prefetch(PREFETCHED).with_options(options)


def _what_is_labelled(records, found):
    """Says which image has a label that is none; `found` is a dataset of that one."""
    ((_, record),) = found
    parsed = records.parsed(record)
    return (
        f'dataset {records.name}: the label of the image {_file_name(parsed)} is {int(parsed["label"])}; it '
        f'must be from 0 to {records.num_classes - 1}. Repair the data set, or prepare it anew.'
    )


def _what_failed(records, found, error):
    """Says which of some records cannot be decoded; where it is none of them, what the error says."""
    tf = tensorflow()
    try:
        for _, record in found:
            parsed = records.parsed(record)
            try:
                records.decode(parsed['image'])
            except (tf.errors.OpError, ValueError) as reason:
                return (
                    f'{records.name}: the image {_file_name(parsed)} cannot be decoded '
                    f'({prepared.reason(reason)}).'
                )
    except tf.errors.OpError as reason:
        error = reason
    return f'{records.name} cannot be read: {prepared.reason(error)}.'


def _file_name(parsed):
    return parsed['file_name'].numpy().decode(errors='replace')


@functools.cache
def tensorflow():
    """TensorFlow, imported when it is needed: it takes seconds to start. It leaves GPUs to JAX."""
    import tensorflow as tf

    if tf.config.get_visible_devices('GPU'):
        tf.config.set_visible_devices([], 'GPU')
    return tf
