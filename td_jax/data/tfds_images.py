"""Image classification data sets of TFDS, by their names there: in memory where they fit, else streamed."""

import numpy as np

from td_jax.data import base, images, prepared, stream
from td_jax.data.base import Source
from td_jax.data.resizing import View
from td_jax.data.stream import Records, Span
from td_jax.errors import UserError

# The last so many percent of the training part are a validation slice, and those of all images a test, where
# TFDS has none.
SHARE = 10
# Names of features that hold the name of an image's file.
FILE_NAMES = 'file_name', 'image/filename', 'filename', 'image/file_name', 'id', 'image_id'


def load(config, task, teacher_views: images.TeacherViews | None = None) -> Source:
    """Cuts the images for a task.

    Inputs: {'image': [batch, size, size, 3]}, by images.inputs_of; labels: position of the class in the
    task's classes. In memory, square images that are all of one size stay so, and others are kept as a model
    is shown them in an evaluation.

    Args:
      config: `config.dataset`, for the name, the split and the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for the classes and how a model is shown images.
      teacher_views: how a teacher is shown the same images, if other than its student.

    Raises:
      UserError: a name that TFDS does not have, a data set that is not of labelled images, not prepared or in
        another format than tfrecord, or classes and examples that are not there.
    """
    name = config.tfds
    if not name:
        raise UserError('dataset.tfds is empty; name a data set of TFDS, such as oxford_flowers102.')
    builder = prepared.builder(name)
    with prepared.errors_as_user_error(name):
        prepared.check_format(builder)
        image, label = _find_keys(name, builder.info)
        parts = [_find_spans(builder, names) for names in _choose_splits(name, builder.info, config.split)]
    label_names = tuple(builder.info.features[label].names)
    records = records_of(builder, image, label)
    side = _common_side(builder.info.features[image])
    # Squares of one size are kept as they are.
    native = {images.IMAGE: View(side, config.resize)} if side else None
    views = (native, native) if native else stream.views_of(config, task, teacher_views)
    counts = [stream.count_of(spans) for spans in parts]
    if images.fits_in_memory(sum(counts), [view.side for view in views[0].values()], config):
        examples = [
            stream.load_examples(records, tuple(part), of_part)
            for part, of_part in zip(parts, views, strict=True)
        ]
        with prepared.errors_as_user_error(name):
            search_names, _ = _choose_splits(name, builder.info, 'validation')
            held_back = counts[0] - stream.count_of(_find_spans(builder, search_names))
        contents = stream.encoded_images(records, parts[1])
        source = images.source_in_memory(
            name,
            label_names,
            examples,
            config,
            task,
            contents=contents,
            held_back=held_back,
            is_native=bool(side),
        )
        return source._replace(known_by=prepared.known_by(builder))
    stream.check_whole(name, config, task)
    for spans in parts:
        _check_first(records, spans)
    return source_of_stream(name, label_names, builder, records, parts, config, task, teacher_views)


def source_of_stream(name, label_names, builder, records, parts, config, task, teacher_views) -> Source:
    """Makes a Source of images of TFDS that are streamed.

    Args:
      name, label_names, config, task, teacher_views: as of stream.source_of.
      builder: of TFDS.
      records: of the builder.
      parts: spans of training and of evaluation.
    """
    # Bytes of the examples in the shuffle buffer, without those that are read ahead.
    whole, count = builder.info.splits['train'], stream.count_of(parts[0])
    host_bytes = min(config.shuffle_buffer, count) * whole.num_bytes // max(whole.num_examples, 1)
    source = stream.source_of(
        name, label_names, [(records, spans) for spans in parts], config, task, host_bytes, teacher_views
    )
    return source._replace(known_by=prepared.known_by(builder))


def _find_keys(name, info):
    """Finds the features that are the image and its label."""
    import tensorflow_datasets as tfds

    features, supervised_keys = info.features, info.supervised_keys
    candidates = {
        kind: [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    keys = []
    for i, (kind, keys_of_kind) in enumerate(candidates.items()):
        if (
            isinstance(supervised_keys, tuple)
            and len(supervised_keys) == 2
            and supervised_keys[i] in keys_of_kind
        ):
            keys.append(supervised_keys[i])
        elif len(keys_of_kind) == 1:
            keys += keys_of_kind
        else:
            raise UserError(
                f'dataset.tfds {name} is no data set of images of one class each: of its features '
                f'{", ".join(features)}, {len(keys_of_kind) or "none"} is of the kind {kind.__name__}.'
            )
    if features[keys[0]].np_dtype != np.uint8:
        raise UserError(
            f'dataset.tfds {name}: {keys[0]} is of {np.dtype(features[keys[0]].np_dtype)}; images have a '
            'byte per colour, uint8.'
        )
    return keys


def _common_side(feature):
    """Side in pixels if all images are squares of one size, else None."""
    height, width, *_ = feature.shape
    return height if height == width else None


def _choose_splits(name, info, split):
    """Chooses the parts of TFDS for (training, evaluation), a tuple of names each."""
    available = set(info.splits)
    if 'train' not in available:
        raise UserError(f'dataset.tfds {name} has no part train; it has {", ".join(sorted(available))}.')
    train_percent = 100 - SHARE
    if split == 'test':
        if 'test' in available:
            return ('train', 'validation') if 'validation' in available else ('train',), ('test',)
        if 'validation' in available:
            return ('train',), ('validation',)
        return (f'train[:{train_percent}%]',), (f'train[{train_percent}%:]',)
    if {'validation', 'test'} <= available:
        return ('train',), ('validation',)
    if {'validation', 'test'} & available:
        return (f'train[:{train_percent}%]',), (f'train[{train_percent}%:]',)
    start = train_percent * train_percent // 100
    return (f'train[:{start}%]',), (f'train[{start}%:{train_percent}%]',)


def _find_spans(builder, names):
    return [span for name in names for span in spans_of(builder, name)]


def _check_first(records, spans):
    """Refuses a part whose first image has no label, as the test of a benchmark may."""
    if spans:
        tf, first = stream.tensorflow(), spans[0]
        ((record),) = records.open(tf.constant(first.path), first.skip, 1)
        label = np.array([int(records.parse(record)['label'])])
        base.check_labels(
            f'dataset {records.name}, {first.path.rpartition("/")[2]}', label, records.num_classes
        )


def spans_of(builder, split: str) -> list[Span]:
    """The spans of a split's records, in order."""
    return [Span(str(s.filename), s.skip, s.take) for s in builder.info.splits[split].file_instructions]


def records_of(builder, image: str = 'image', label: str = 'label') -> Records:
    """Makes Records of a builder, of which two features are the image and its label."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    file_name = next((key for key in FILE_NAMES if key in features), None)
    names = [image, label] + ([file_name] if file_name else [])
    feature_dict = tfds.features.FeaturesDict({key: features[key] for key in names})

    def parse(record):
        example = feature_dict.deserialize_example(record, decoders={image: tfds.decode.SkipDecoding()})
        name_text = (
            stream.tensorflow().strings.as_string(example[file_name]) if file_name else 'without a name'
        )
        return {'image': example[image], 'label': example[label], 'file_name': name_text}

    def open_span(path, skip, take):
        return stream.tensorflow().data.TFRecordDataset(path).skip(skip).take(take)

    place = str(builder.data_path), image, label
    return Records(
        builder.info.full_name.rpartition('/')[0],
        features[label].num_classes,
        place,
        open_span,
        parse,
        stream.decode_by_tensorflow,
    )
