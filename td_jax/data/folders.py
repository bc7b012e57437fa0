"""Images of your own, in a folder for each class: in memory where they fit, else streamed.

FOLDER/train/CLASS/FILE and FOLDER/test/CLASS/FILE, or FOLDER/CLASS/FILE, of which a tenth of each class is
the test. What is cut off, that test or a validation slice, are the files of a class whose names have the
lowest hashes: a file stays where it is unless others join its class.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np
from etils import epath

from td_jax.data import base as data
from td_jax.data import decoding, file_digest, image_files, images, paths, stream
from td_jax.data.base import Files, Source
from td_jax.data.stream import Records, Span
from td_jax.errors import UserError, failure_as_user_error

TRAIN, TEST = 'train', 'test'
# Share of a class that is held out for a test, and again for a validation slice.
SHARE = 0.1
# The files of a part are cut into at most so many spans, whose order is drawn for each epoch.
MAX_SPANS = 1024
WHAT = 'a folder of images, with a folder for each class in it, or with train and test that have those'


class Listing(NamedTuple):
    """The files of a folder."""

    folder: str
    classes: tuple[str, ...]
    has_test: bool  # whether there are train and test
    files: dict[
        str, tuple[tuple[str, ...], ...]
    ]  # {part: of each class, its names, in the order of their hashes}
    ignored: str  # the names that are not read, for a person; '' if there are none


def load(config, task, teacher_views: images.TeacherViews | None = None) -> Source:
    """Cuts the images for a task.

    Inputs: {'image': [batch, size, size, 3]}, by images.inputs_of; labels: position of the class in the
    task's classes, which have numbers in the order of their names. In memory, images are kept as a model is
    shown them in an evaluation.

    Args:
      config: `config.dataset`, for the folder, the split, the random variation, and for what draws
        the training examples of a class.
      task: `config.dataset` or `config.teacher.dataset`, for the classes, how many examples of each, and how
        a model is shown images.
      teacher_views: how a teacher is shown the same images, if other than its student.

    Raises:
      UserError: a folder that is not there or laid out otherwise, a class with too few images, an image that
        cannot be read, or classes that are not there.
    """
    listing = list_files(paths.resolve(config.path, WHAT, is_folder=True))
    name = epath.Path(config.path).name or config.path
    classes = images.resolve_classes(name, listing.classes, task)
    *parts, held_back = _split_files(listing, config.split)
    count = sum(len(of_class) for part in parts for of_class in part)
    per_class, is_drawn = _examples_per_class(task, parts[0], classes), data.makes_pool(config, task)
    limit = None if is_drawn else per_class or None
    files_by_class = [(parts[0][c][:limit], parts[1][c]) for c in classes]
    files = [
        _mix_classes((file, i) for i, of_class in enumerate(of_part) for file in of_class)
        for of_part in zip(*files_by_class, strict=True)
    ]
    label_names = tuple(listing.classes[c] for c in classes)
    known_by = {
        f'images of {label}': Files(listing.folder, (*training, *evaluation))
        for label, (training, evaluation) in zip(label_names, files_by_class, strict=True)
    }
    views = stream.views_of(config, task, teacher_views)
    is_in_memory = images.fits_in_memory(count, [view.side for view in views[0].values()], config)
    # Images in memory are those of the files as they are now; a stream reads each file when its turn comes.
    stamp = file_digest.combined_stamp(known_by.values()) if is_in_memory else ''
    records = [_make_records(listing.folder, part, len(classes), stamp) for part in files]
    spans = [_make_spans(len(part)) for part in files]
    draw = None
    if is_drawn:
        labels, *lots = _prepare_draw(listing, files[0], held_back)
        # In the order of their hashes, in which `files` are not.
        first = {file for c in classes for file in parts[0][c][:per_class]}
        is_first = np.array([file in first for file, _ in files[0]])
        first_rows = None if config.labelled_by == 'seed' else np.flatnonzero(is_first)
        pool = data.make_labelled_pool({'labels': labels}, per_class, *lots, first_rows)
        draw = pool.rows
    if draw:
        # The draw depends on the files of other classes, too.
        drawn_names = ' '.join(files[0][row][0] for row in draw(0))
        known_by['files that a seed draws'] = _digest(drawn_names).hex()[:8]
    full_name = f'{name} {images.describe_classes(listing.classes, classes)}{data.describe_part(config)}'
    if is_in_memory:
        examples = [
            stream.load_examples(*part) for part in zip(records, map(tuple, spans), views, strict=True)
        ]
        whole_task = task.copy_and_resolve_references()
        whole_task.classes, whole_task.examples_per_class = (), 0
        contents = stream.encoded_images(records[1], spans[1])
        source = images.source_in_memory(
            name, label_names, examples, config, whole_task, contents=contents, held_back=0, is_native=False
        )
        if draw:
            source = source._replace(train=pool._replace(examples=source.train))
    else:
        stream.check_whole_test(name, config)
        for part in files:
            _check_files(listing.folder, part)
        # The numbers of files are shuffled, not their content.
        host_bytes = 8 * min(config.shuffle_buffer, len(files[0]))
        source = stream.source_of(
            name, label_names, list(zip(records, spans, strict=True)), config, task, host_bytes, teacher_views
        )
        if draw:
            source = source._replace(
                train=_make_drawn_stream(listing, files[0], draw, source.train, config, views[0])
            )
    note = f'{name} holds what is not read: {listing.ignored}' if listing.ignored else ''
    return source._replace(name=full_name, note=note, known_by=known_by)


def load_unlabelled(folder: epath.Path, files: tuple[str, ...], views: stream.Views) -> dict:
    """Loads images of any folder into memory, {field: [files, side, side, 3] uint8 of each view}.

    Args:
      folder: of the images.
      files: their paths below it.
      views: how they are resized.

    Raises:
      UserError: one cannot be read or decoded.
    """
    stamp = file_digest.combined_stamp([Files(str(folder), files)])
    # They have one class, which is then left out.
    records = _make_records(str(folder), [(file, 0) for file in files], 1, stamp)
    examples = stream.load_examples(records, tuple(_make_spans(len(files))), views)
    return {field: array for field, array in examples.items() if field != 'labels'}


def list_files(folder: epath.Path) -> Listing:
    """Lists the classes of a folder of images and their files.

    Raises:
      UserError: it is laid out otherwise, or cannot be read.
    """
    with failure_as_user_error(f'dataset.path {folder} cannot be read'):
        return _list_files(folder)


def _list_files(folder):
    ignored = image_files.IgnoredFiles()
    top = _list_folders(folder, '', ignored)
    halves = [part for part in (TRAIN, TEST) if part in top]
    if len(halves) == 1:
        missing = TEST if halves == [TRAIN] else TRAIN
        raise UserError(f'dataset.path {folder} has {halves[0]} and no {missing}; it must be {WHAT}.')
    parts = halves or [TRAIN]
    ignored.names += [f'{name}/' for name in top if halves and name not in halves]
    files_by_part = {}
    for part in parts:
        inside = f'{part}/' if halves else ''
        names = _list_folders(folder / part, inside, ignored) if halves else top
        files_by_part[part] = {name: _list_class(folder, f'{inside}{name}', ignored) for name in names}
    for part, other in ((TRAIN, TEST), (TEST, TRAIN)) if halves else ():
        if extra := sorted(files_by_part[part].keys() - files_by_part[other].keys()):
            raise UserError(
                f'{folder / part} has the class {extra[0]}, which {folder / other} has not; both need all.'
            )
    classes = tuple(sorted(files_by_part[TRAIN]))
    if len(classes) < 2:
        raise UserError(f'dataset.path {folder} has {len(classes) or "no"} class; it must be {WHAT}.')
    files = {part: tuple(of_class[name] for name in classes) for part, of_class in files_by_part.items()}
    return Listing(str(folder), classes, bool(halves), files, str(ignored))


def _list_folders(folder, inside, ignored):
    """Lists the folders in a folder, which is `inside` another; all else is ignored."""
    entries = image_files.list_folder(folder)
    ignored.add(inside, entries)
    # The name of a class may look like that of an image.
    folders = [name for name in entries.images if (folder / name).is_dir()]
    ignored.names += [f'{inside}{name}' for name in entries.images if name not in folders]
    return sorted(entries.folders + folders)


def _list_class(folder, inside, ignored):
    """Lists the images of a class, 'INSIDE/FILE' each, in the order of their hashes."""
    entries = image_files.list_folder(folder / inside)
    ignored.add(f'{inside}/', entries)
    ignored.names += [f'{inside}/{name}/' for name in entries.folders]
    if not entries.images:
        raise UserError(f'{folder / inside} has no images; read are {", ".join(decoding.SUFFIXES)}.')
    class_name = inside.rpartition('/')[2]

    def digest(name):
        return hashlib.sha256(f'{class_name}/{name}'.encode()).digest()

    return tuple(f'{inside}/{name}' for name in sorted(entries.images, key=digest))


def _split_files(listing, split):
    """Splits each class into (training, evaluation, files of training that a search is evaluated on)."""
    parts_by_class = {}
    for number, name in enumerate(listing.classes):
        training = listing.files[TRAIN][number]
        test = listing.files[TEST][number] if listing.has_test else _take_share(training)
        development = training if listing.has_test else training[len(test) :]
        evaluation = test if split == 'test' else _take_share(development)
        train = development if split == 'test' else development[len(evaluation) :]
        if not train or not evaluation:
            needed = 1 + (split == 'validation') + (not listing.has_test)
            place = f'{listing.folder}/{TRAIN}/{name}' if listing.has_test else f'{listing.folder}/{name}'
            images_there = '1 image' if len(training) == 1 else f'{len(training)} images'
            raise UserError(
                f'{place} has {images_there}; with dataset.split={split} a class takes {needed} at the least.'
            )
        parts_by_class[name] = train, evaluation, _take_share(development) if split == 'test' else ()
    return tuple(zip(*parts_by_class.values(), strict=True))


def _take_share(files):
    """The files of a class that are held out: the first tenth, but at least one."""
    return files[: max(1, round(SHARE * len(files)))]


def _examples_per_class(task, train, classes):
    """The number of training images per class of a task; 0 for all. Refuses more than there are."""
    fewest = min(len(train[c]) for c in classes)
    if task.examples_per_class > fewest:
        raise images.too_few_error(task.examples_per_class, fewest)
    return task.examples_per_class


def _digest(file):
    return hashlib.sha256(file.encode()).digest()


def _mix_classes(files):
    """Sorts (file, label) in an order that mixes the classes."""
    return tuple(sorted(files, key=lambda file: _digest(file[0])))


def _prepare_draw(listing, files, held_back):
    """Prepares a draw of training files: (their labels, their places among all files, is_held_back)."""
    all_files = sorted((file for of_class in listing.files[TRAIN] for file in of_class), key=_digest)
    place_of = {file: place for place, file in enumerate(all_files)}
    held_back_files = {file for of_class in held_back for file in of_class}
    places = np.array([place_of[file] for file, _ in files])
    is_held_back = np.array([file in held_back_files for file, _ in files])
    return np.array([label for _, label in files]), places, is_held_back


def _make_drawn_stream(listing, files, draw, whole, config, views):
    """Makes a TrainStream of the files that each seed draws; `whole` is the stream of all files."""
    num_classes = len({label for _, label in files})

    def make_records(number):
        drawn_files = tuple(files[row] for row in draw(number))
        records = _make_records(listing.folder, drawn_files, num_classes, stamp='')
        return records, _make_spans(len(drawn_files))

    count = len(draw(0))
    return whole._replace(
        count=count,
        open=functools.partial(stream.train_batches, make_records, config, views),
        host_bytes=8 * min(config.shuffle_buffer, count),
        pass_over=lambda number: stream.evaluation_stream(*make_records(number), views),
        is_drawn=True,
    )


def _make_spans(count):
    """Cuts the numbers of files into spans of equal size."""
    size = -(-count // MAX_SPANS)
    return [Span('', start, min(size, count - start)) for start in range(0, count, size)]


def _make_records(folder, files, num_classes, stamp):
    """Makes Records of (file, label), by `_mix_classes`: a record is the number of a file."""
    names, labels = zip(*files, strict=True)

    @functools.cache
    def constants():
        tf = stream.tensorflow()
        # Outside of a dataset's function, whose program would hold their values.
        with tf.init_scope():
            return tf.constant(names), tf.constant(labels)

    def parse(number):
        tf = stream.tensorflow()
        files, classes = constants()
        path = tf.strings.join([folder, '/', files[number]])
        return {'image': tf.io.read_file(path), 'label': classes[number], 'file_name': path}

    def open_span(path, skip, take):
        return stream.tensorflow().data.Dataset.range(skip, skip + take)

    return Records(
        folder.rstrip('/').rpartition('/')[2],
        num_classes,
        (folder, names, labels, stamp),
        open_span,
        parse,
        stream.decode_by_pil,
    )


def _check_files(folder, files):
    """Refuses a file that does not begin like an image; images in memory are decoded at once instead."""
    for name, _ in files:
        path = epath.Path(folder) / name
        with failure_as_user_error(f'{path} cannot be read'):
            try:
                with path.open('rb') as file:
                    decoding.check(file)
            except ValueError as error:
                raise UserError(f'{path} cannot be decoded ({error}); replace it or take it away.') from error
