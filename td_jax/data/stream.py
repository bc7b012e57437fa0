"""Images that are read during training, from the records of TFDS or from files.

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
# Batches that are prepared ahead.
PREFETCHED_BATCHES = 2
# Spans that an evaluation reads concurrently.
EVALUATION_FILES = 8
# TensorFlow's global seed where nothing has set one.
UNSET_SEED = 87654321
# Images that are decoded together where all are kept in memory.
DECODED_AT_ONCE = 256


class Span(NamedTuple):
    """Consecutive records of one file, or of another ordered collection."""

    path: str
    skip: int  # records before them
    take: int


@dataclasses.dataclass(frozen=True)
class Records:
    """Encoded images with their labels, and functions that read them."""

    name: str  # of all of them, for a person
    num_classes: int
    place: Hashable  # where they lie; records of another place differ
    # open(path [] string, skip [] int64, take [] int64) -> tf.data.Dataset of the records of a Span
    open: Callable[..., Any] = dataclasses.field(compare=False)
    # parse(record) -> {'image': [] string, still encoded, 'label': [] whole number, 'file_name': [] string}
    parse: Callable[..., dict] = dataclasses.field(compare=False)
    # decode(encoded, seed, min_area) -> [height, width, 3] uint8, as decode_by_tensorflow does it
    decode: Callable[..., Any] = dataclasses.field(compare=False)


# {field of an example: its view}: of the student, and of a teacher with views of its own.
Views = dict[str, View]


def source_of(
    name: str,
    label_names: tuple[str, ...],
    parts: tuple[tuple[Records, list[Span]], tuple[Records, list[Span]]],
    config,
    task,
    host_bytes: int,
    teacher_views: images.TeacherViews | None = None,
) -> Source:
    """Makes a Source of images that are streamed; nothing is decoded yet.

    Examples: {'image': [rows, side, side, 3] uint8, 'labels': [rows] int32}, and 'teacher_image' where a
    teacher is shown others. Inputs: {'image': [rows, side, side, 3]}, by images.inputs_of.

    Args:
      name: what a person calls it.
      label_names: of the classes, in the order of their numbers.
      parts: of training and of evaluation, the records, and which of them.
      config: `config.dataset`, for the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for how a model is shown images.
      host_bytes: of TrainStream.
      teacher_views: how a teacher is shown the same images, if other than its student.
    """
    (train_records, train), (records, evaluation) = parts
    train_views, evaluation_views = views_of(config, task, teacher_views)
    return Source(
        name=name,
        train=TrainStream(
            count=count_of(train),
            example={
                **{field: np.zeros((1, *_shape(view)), np.uint8) for field, view in train_views.items()},
                'labels': np.zeros(1, np.int32),
            },
            open=functools.partial(train_batches, lambda number: (train_records, train), config, train_views),
            host_bytes=host_bytes,
            pass_over=lambda number: evaluation_stream(train_records, train, train_views),
        ),
        evaluation=evaluation_stream(records, evaluation, evaluation_views),
        label_names=label_names,
        **images.make_fields(config, task, is_in_memory=False, is_native=False),
    )


def views_of(config, task, teacher_views: images.TeacherViews | None) -> tuple[Views, Views]:
    """Makes the views of training and of evaluation examples.

    Args:
      config, task, teacher_views: as of source_of.
    """
    student_views = {images.IMAGE: images.view_of(config, task)}
    if teacher_views is None:
        return student_views, student_views
    return tuple({**student_views, images.TEACHER_IMAGE: view} for view in teacher_views)


def _shape(view):
    return view.side, view.side, 3


def check_whole(name: str, config, task):
    """Refuses a part of the classes or examples where all are streamed.

    Args:
      name: what a person calls the data set.
      config: `config.dataset`.
      task: that, or `config.teacher.dataset`.

    Raises:
      UserError: names the key.
    """
    check_whole_test(name, config)
    for key in ('classes', 'examples_per_class'):
        if task[key]:
            owner = 'dataset' if task is config else 'teacher.dataset'
            raise UserError(
                f'{owner}.{key} is {task[key]}; {name} is streamed whole: leave it at {type(task[key])()}.'
            )


def check_whole_test(name: str, config):
    """Refuses half of a streamed test; takes a data set's name and `config.dataset`.

    Raises:
      UserError: says what to do.
    """
    if data.describe_part(config):
        hint = (
            ', or raise dataset.kept_gb, which keeps them in memory'
            if config.name in images.MEMORY_OR_STREAM
            else ''
        )
        raise UserError(
            f'dataset.test_part is {config.test_part}, which takes the content of all test images, but '
            f'{name} is streamed: leave it at all{hint}.'
        )


# --- Which records ---------------------------------------------------------------------------------


def count_of(spans: list[Span]) -> int:
    """Counts the records in some spans."""
    return sum(span.take for span in spans)


def _cut_spans(spans, start, stop):
    """Cuts the records from `start` to `stop` out of `spans`, in which they are numbered from 0."""
    selected_spans, count_before = [], 0
    for span in spans:
        first, last = max(start - count_before, 0), min(stop - count_before, span.take)
        if first < last:
            selected_spans.append(Span(span.path, span.skip + first, last - first))
        count_before += span.take
    return selected_spans


def _share(spans, part, parts):
    """The part-th of `parts` shares, whose sizes differ by one at most."""
    count = count_of(spans)
    return _cut_spans(spans, part * count // parts, (part + 1) * count // parts)


def lane_count(num_files: int, batch_size: int) -> int:
    """The number of lanes of a batch: a power of two that divides it, at most MAX_LANES or one per file."""
    lanes = 1
    while 2 * lanes <= min(num_files, MAX_LANES) and batch_size % (2 * lanes) == 0:
        lanes *= 2
    return lanes


def _open_train_records(records, spans, buffer, seed, step, batch_size, rows):
    """Opens the requested rows of all batches from `step` on.

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
        num_passed = tf.clip_by_value(start - tf.cumsum(take, exclusive=True), 0, take)
        spans = tf.data.Dataset.from_tensor_slices(
            (tf.gather(paths, files), skip + num_passed, take - num_passed)
        )
        # Files that are skipped as a whole are not opened.
        return spans.filter(lambda path, skip, take: take > 0).flat_map(records.open)

    def records_of_lane(lane):
        """A lane's records, epoch after epoch without end, from `step` on."""
        begin = step * per_lane
        first_epoch, offset = begin // counts[lane], begin % counts[lane]
        first_window = offset // window

        def windows_of(epoch):
            passed = tf.where(epoch == first_epoch, first_window, 0)
            windows = records_of_epoch(lane, epoch, passed * window).window(window)
            return windows.enumerate(passed).map(
                lambda number, window_records: (epoch, number, window_records)
            )

        def shuffle(epoch, number, window_records):
            # Dataset.shuffle mixes TensorFlow's global seed in, which a library or a script may have set.
            # Inside of a traced function this sets the function's own, to what it is where nobody did.
            tf.random.set_seed(UNSET_SEED)
            order = tf.random.stateless_uniform(
                [], _seed(tf, seed, 1, lane, epoch, number), None, None, tf.int64
            )
            return window_records.shuffle(window, order, reshuffle_each_iteration=False)

        # The next window is read while this one is used.
        windows = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(windows_of).prefetch(1)
        return windows.flat_map(shuffle).skip(offset % window)

    own_lanes = tf.data.Dataset.range(first_lane, last_lane + 1)
    indexed_records = own_lanes.interleave(
        records_of_lane, cycle_length=len(own_lanes), block_length=per_lane
    ).enumerate()
    block = len(own_lanes) * per_lane  # records of a step that are read

    def row_of(index):
        return first_lane * per_lane + index % block

    if (first_row, stop_row) != (first_lane * per_lane, (last_lane + 1) * per_lane):
        indexed_records = indexed_records.filter(
            lambda index, record: (row_of(index) >= first_row) & (row_of(index) < stop_row)
        )

    def position_of(index):
        return (step + index // block) * batch_size + row_of(index)

    return indexed_records, position_of


def _seed(tf, seed, *numbers):
    """Folds numbers into a seed [2] for TensorFlow's stateless operations."""
    key = tf.constant([seed, 0], tf.int64)
    for number in numbers:
        key = tf.random.experimental.stateless_fold_in(key, number)
    return key


# --- From a record to pixels -----------------------------------------------------------------------


def decode_by_tensorflow(encoded, seed=None, min_area: float = 1):
    """Decodes an image as TFDS does, whole or a random crop of it.

    Args:
      encoded: [] string; JPEG, PNG, GIF or BMP, of any size and colours.
      seed: [2], of the crop.
      min_area: of the crop, by _draw_crop; 1 takes the image whole.

    Returns:
      [height, width, 3] uint8.
    """
    tf = tensorflow()

    def decode_jpeg():
        if min_area >= 1:
            return tf.io.decode_jpeg(encoded, channels=3)
        crop = _draw_crop(tf.io.extract_jpeg_shape(encoded), seed, min_area)
        return tf.io.decode_and_crop_jpeg(encoded, crop, channels=3)

    def decode_other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return _random_crop(image, seed, min_area)

    return tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_other)


def decode_by_pil(encoded, seed=None, min_area: float = 1):
    """Decodes a file by decoding.decode; arguments and result are as of decode_by_tensorflow."""
    tf = tensorflow()

    def decode(content):
        # Outside of a tf.data.Dataset it is an array without axes.
        return decoding.decode(content if isinstance(content, bytes) else content.item())

    image = tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
    return _random_crop(tf.ensure_shape(image, (None, None, 3)), seed, min_area)


def _draw_crop(shape, seed, min_area):
    """Draws [y, x, height, width] of a crop of an image [height, width, channels].

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


def _random_crop(image, seed, min_area):
    """Crops a decoded image at random; takes it whole for a min_area of 1."""
    if min_area >= 1:
        return image
    tf = tensorflow()
    y, x, height, width = tf.unstack(_draw_crop(tf.shape(image), seed, min_area))
    return image[y : y + height, x : x + width]


def apply_view(image, view: View, is_rounded: bool = True):
    """Applies a view to an image.

    Args:
      image: [height, width, 3] uint8.
      view: how it is shown.
      is_rounded: whether the result is uint8, a quarter of the bytes that go to the device. Else it is
        float32, with whole numbers where Pillow resizes.

    Returns:
      [side, side, 3]
    """
    tf, kind = tensorflow(), resizing.RESIZES[view.resize]
    if kind.is_pillow:
        resize = functools.partial(resizing.resize_by_pillow, view=view)
        image = tf.numpy_function(resize, [image], tf.uint8, stateful=False)
    else:
        height, width = view.scaled_size(*tf.unstack(tf.shape(image)[:2]), tf.minimum)
        # Added before resizing, where there are mostly fewer pixels; the cast then cuts off, which rounds.
        # (From float32 TensorFlow resizes faster than from uint8.)
        image = tf.cast(image, tf.float32) + (0.5 if is_rounded else 0.0)
        image = tf.image.resize(image, (height, width), kind.method)
        if not view.is_whole:
            top, left = ((length - view.side) // 2 for length in (height, width))
            image = image[top : top + view.side, left : left + view.side]
    return tf.ensure_shape(tf.cast(image, tf.uint8 if is_rounded else tf.float32), _shape(view))


def _make_example(parsed, image, views):
    """Makes an example, {field: [side, side, 3] uint8 of each view, 'labels': [] int32}."""
    tf = tensorflow()
    pixels = {field: apply_view(image, view) for field, view in views.items()}
    return {**pixels, 'labels': tf.cast(parsed['label'], tf.int32)}


# --- Batches ---------------------------------------------------------------------------------------


def train_batches(records_of, config, views, seed, step, batch_size, rows):
    """TrainStream.open, with three arguments before its own.

    Args:
      records_of: (number of a seed) -> (records, spans).
      config: `config.dataset`.
      views: of training.
      seed, step, batch_size, rows: as of TrainStream.open.
    """
    tf, (records, spans) = tensorflow(), records_of(seed)
    if config.min_crop_area < 1:
        # A crop is shown as a whole.
        views = {field: View(view.side, view.resize) for field, view in views.items()}
    indexed_records, position_of = _open_train_records(
        records, spans, config.shuffle_buffer, seed, step, batch_size, rows
    )

    def make_example(index, record):
        parsed = records.parse(record)
        crop_seed, mirror_seed = tf.unstack(
            tf.random.experimental.stateless_split(_seed(tf, seed, 2, position_of(index)), 2)
        )
        image = records.decode(parsed['image'], crop_seed, config.min_crop_area)
        is_mirrored = tf.random.stateless_uniform([], mirror_seed) < config.mirror_rate
        # tf.reverse is ten times as fast as a slice with stride -1.
        image = tf.cond(is_mirrored, lambda: tf.reverse(image, [1]), lambda: image)
        return _make_example(parsed, image, views)

    return _decode_batches(records, indexed_records, make_example, len(range(*rows.indices(batch_size))))


def evaluation_stream(
    records: Records, spans: list[Span], views: Views, files_at_once: int = EVALUATION_FILES
) -> EvaluationStream:
    """Makes a stream of the images of some spans; records of `files_at_once` spans alternate."""
    open_batches = functools.partial(_evaluation_batches, records, spans, views, files_at_once)
    return EvaluationStream(count=count_of(spans), open=open_batches)


def load_examples(records: Records, spans: tuple[Span, ...], views: Views) -> dict[str, np.ndarray]:
    """Loads all examples of some spans, in their order, into memory.

    The latest results are cached: the same spans give the same arrays again.

    Raises:
      UserError: what the stream raises.
    """
    return _load_examples(records, spans, tuple(views.items()))


@functools.lru_cache(maxsize=4)
def _load_examples(records, spans, views):
    """`load_examples` of hashable arguments, cached."""
    # One span after the other, because the last examples are held back.
    stream = evaluation_stream(records, list(spans), dict(views), files_at_once=1)
    arrays = {field: np.empty((stream.count, *_shape(view)), np.uint8) for field, view in views}
    arrays['labels'] = np.empty(stream.count, np.int32)
    start = 0
    for examples, mask in stream.open(DECODED_AT_ONCE, 0, 1):
        stop = start + int(mask.sum())
        for name, array in examples.items():
            arrays[name][start:stop] = array[: stop - start]
        start = stop
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def encoded_images(records: Records, spans: list[Span]) -> Iterator[bytes]:
    """The encoded images of some spans, in the order of `load_examples`."""
    for _, record in _open_evaluation_records(records, _share(spans, 0, 1), files_at_once=1):
        yield records.parse(record)['image'].numpy()


def _open_evaluation_records(records, spans, files_at_once):
    """Opens a tf.data.Dataset of (index [], record) of some spans, in the order of an evaluation."""
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
    own_spans = _share(spans, part, parts)
    largest = max(count_of(_share(spans, p, parts)) for p in range(parts))

    def make_example(index, record):
        parsed = records.parse(record)
        return _make_example(parsed, records.decode(parsed['image']), views)

    batches = _decode_batches(
        records, _open_evaluation_records(records, own_spans, files_at_once), make_example, batch_size
    )
    for _ in range(-(-largest // batch_size)):
        examples = next(batches, None) or {
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


def _decode_batches(records, indexed_records, make_example, batch_size):
    """Decodes records and batches them.

    Args:
      records: where they are from, to name what cannot be decoded.
      indexed_records: dataset of (index [], record).
      make_example: (index, record) -> {name: tensor}.
      batch_size: rows of a batch; the last one may have fewer.

    Returns:
      Iterator over {name: [rows, ...]}.

    Raises:
      UserError: from the iterator, where a file cannot be read, an image not be decoded, or a label is none.
    """
    tf = tensorflow()
    num_batches = 0
    iterator = map_in_parallel(indexed_records, make_example, batch_size).as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            failed_records = indexed_records.skip(num_batches * batch_size).take(batch_size)
            raise UserError(_describe_failure(records, failed_records, error)) from error
        labels = batch['labels']
        is_right = (labels >= 0) & (labels < records.num_classes)
        if not is_right.all():
            skipped = num_batches * batch_size + int(np.argmin(is_right))
            raise UserError(_describe_wrong_label(records, indexed_records.skip(skipped).take(1)))
        yield batch
        num_batches += 1


def map_in_parallel(records, make_example, batch_size: int):
    """Applies `make_example` to records in parallel; returns a tf.data.Dataset of batches in their order."""
    tf = tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    # An image's own operations gain nothing from threads in addition to those of other images.
    options.threading.max_intra_op_parallelism = 1
    # By default it prepares ever more batches, hundreds of megabytes each.
    options.autotune.enabled = False
    examples = records.map(make_example, num_parallel_calls=os.cpu_count())
    return examples.batch(batch_size).prefetch(PREFETCHED_BATCHES).with_options(options)


def _describe_wrong_label(records, indexed_records):
    """Says which image has a wrong label; `indexed_records` is a dataset of that one."""
    ((_, record),) = indexed_records
    parsed = records.parse(record)
    return (
        f'dataset {records.name}: the label of the image {_file_name(parsed)} is {int(parsed["label"])}; it '
        f'must be from 0 to {records.num_classes - 1}. Repair the data set, or prepare it anew.'
    )


def _describe_failure(records, indexed_records, error):
    """Says which of some records cannot be decoded; if all can, what the error says."""
    tf = tensorflow()
    try:
        for _, record in indexed_records:
            parsed = records.parse(record)
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
