"""Image classification data sets of TFDS, by their names there: in memory where they fit, else streamed."""

import numpy as np

from td_jax.data import base, images, prepared, stream
from td_jax.data.base import Source
from td_jax.data.resizing import View
from td_jax.data.stream import Records, Span
from td_jax.errors import UserError

# Share of the training part that is a validation slice, and of all images a test, where TFDS has none: in
# percent, the last ones.
SHARE = 10
# What a feature with the name of an image's file is called.
FILE_NAMES = 'file_name', 'image/filename', 'filename', 'image/file_name', 'id', 'image_id'


def load(config, task, beside: images.OfTeacher | None = None) -> Source:
    """Cuts the images for a task.

    Inputs: {'image': [batch, size, size, 3]}, by images.inputs_of; labels: position of the class in the
    task's classes. In memory, square images that are all of one size stay so, and others are kept as a model
    is shown them in an evaluation.

    Args:
      config: `config.dataset`, for the name, the split and the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for the classes and how a model is shown images.
      beside: how a teacher is shown the same images, where that is not as the student is.

    Raises:
      UserError: a name that TFDS does not have, a data set that is not of labelled images, not prepared or in
        another format than tfrecord, or classes and examples that are not there.
    """
    name = config.tfds
    if not name:
        raise UserError('dataset.tfds is empty; name a data set of TFDS, such as oxford_flowers102.')
    builder = prepared.builder(name)
    with prepared.reading(name):
        prepared.check_format(builder)
        image, label = _keys(name, builder.info)
        parts = [_spans(builder, names) for names in _splits(name, builder.info, config.split)]
    label_names = tuple(builder.info.features[label].names)
    records = records_of(builder, image, label)
    side = _side(builder.info.features[image])
    # Squares of one size are kept as they are.
    native = {images.IMAGE: View(side, config.resize)} if side else None
    views = (native, native) if native else stream.views_of(config, task, beside)
    counts = [stream.count_of(spans) for spans in parts]
    if images.is_kept(sum(counts), [view.side for view in views[0].values()], config):
        kept = [
            stream.kept(records, tuple(part), of_part) for part, of_part in zip(parts, views, strict=True)
        ]
        with prepared.reading(name):
            searched, _ = _splits(name, builder.info, 'validation')
            held_back = counts[0] - stream.count_of(_spans(builder, searched))
        contents = stream.contents(records, parts[1])
        source = images.kept_source(
            name,
            label_names,
            kept,
            config,
            task,
            contents=contents,
            held_back=held_back,
            is_native=bool(side),
        )
        return source._replace(known_by=prepared.known_by(builder))
    stream.whole_only(name, config, task)
    for spans in parts:
        _check_first(records, spans)
    host_bytes = shuffled_bytes(builder, config, counts[0])
    source = stream.source_of(
        name, label_names, [(records, spans) for spans in parts], config, task, host_bytes, beside
    )
    return source._replace(known_by=prepared.known_by(builder))


def _keys(name, info):
    """The features that are the image and its label."""
    import tensorflow_datasets as tfds

    features, wanted = info.features, info.supervised_keys
    found = {
        kind: [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    keys = []
    for i, (kind, own) in enumerate(found.items()):
        if isinstance(wanted, tuple) and len(wanted) == 2 and wanted[i] in own:
            keys.append(wanted[i])
        elif len(own) == 1:
            keys += own
        else:
            raise UserError(
                f'dataset.tfds {name} is no data set of images of one class each: of its features '
                f'{", ".join(features)}, {len(own) or "none"} is of the kind {kind.__name__}.'
            )
    if features[keys[0]].np_dtype != np.uint8:
        raise UserError(
            f'dataset.tfds {name}: {keys[0]} is of {np.dtype(features[keys[0]].np_dtype)}; images have a '
            'byte per colour, uint8.'
        )
    return keys


def _side(feature):
    """Side in pixels of images that all are squares of one size, else None."""
    height, width, *_ = feature.shape
    return height if height == width else None


def _splits(name, info, split):
    """The names of what is (trained on, evaluated on), each a tuple of parts of TFDS."""
    has = set(info.splits)
    if 'train' not in has:
        raise UserError(f'dataset.tfds {name} has no part train; it has {", ".join(sorted(has))}.')
    kept = 100 - SHARE
    if split == 'test':
        if 'test' in has:
            return ('train', 'validation') if 'validation' in has else ('train',), ('test',)
        if 'validation' in has:
            return ('train',), ('validation',)
        return (f'train[:{kept}%]',), (f'train[{kept}%:]',)
    if {'validation', 'test'} <= has:
        return ('train',), ('validation',)
    if {'validation', 'test'} & has:
        return (f'train[:{kept}%]',), (f'train[{kept}%:]',)
    start = kept * kept // 100
    return (f'train[:{start}%]',), (f'train[{start}%:{kept}%]',)


def _spans(builder, names):
    return [span for name in names for span in spans_of(builder, name)]


def _check_first(records, spans):
    """Refuses a part whose first image has no label, as the test of a benchmark may."""
    if spans:
        tf, first = stream.tensorflow(), spans[0]
        ((record),) = records.open(tf.constant(first.path), first.skip, 1)
        label = np.array([int(records.parsed(record)['label'])])
        base.check_labels(
            f'dataset {records.name}, {first.path.rpartition("/")[2]}', label, records.num_classes
        )


def spans_of(builder, split: str) -> list[Span]:
    """Where the records of a split are, in order."""
    return [Span(str(s.filename), s.skip, s.take) for s in builder.info.splits[split].file_instructions]


def records_of(builder, image: str = 'image', label: str = 'label') -> Records:
    """The records of a builder, of which two features are the image and its label."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    file_name = next((key for key in FILE_NAMES if key in features), None)
    kept = [image, label] + ([file_name] if file_name else [])
    part = tfds.features.FeaturesDict({key: features[key] for key in kept})

    def parsed(record):
        found = part.deserialize_example(record, decoders={image: tfds.decode.SkipDecoding()})
        named = stream.tensorflow().strings.as_string(found[file_name]) if file_name else 'without a name'
        return {'image': found[image], 'label': found[label], 'file_name': named}

    def opened(path, skip, take):
        return stream.tensorflow().data.TFRecordDataset(path).skip(skip).take(take)

    place = str(builder.data_path), image, label
    return Records(
        builder.info.full_name.rpartition('/')[0],
        features[label].num_classes,
        place,
        opened,
        parsed,
        stream.decode_by_tensorflow,
    )


def shuffled_bytes(builder, config, count: int) -> int:
    """What the examples take that are shuffled at once; those read ahead come on top.

    Args:
      builder: of TFDS.
      config: `config.dataset`.
      count: examples that are trained on.
    """
    whole = builder.info.splits['train']
    return min(config.shuffle_buffer, count) * whole.num_bytes // max(whole.num_examples, 1)
