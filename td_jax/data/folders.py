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
from td_jax.errors import UserError, reason

TRAIN, TEST = 'train', 'test'
# Share of a class that is cut off, as a test and again as a validation slice.
SHARE = 0.1
# Spans that the files of a part are cut into, at the most: what the order of an epoch is made of.
MOST_SPANS = 1024
WHAT = 'a folder of images, with a folder for each class in it, or with train and test that have those'


class Listing(NamedTuple):
    """The files of a folder."""

    folder: str
    classes: tuple[str, ...]
    has_test: bool  # whether there are train and test
    files: dict[
        str, tuple[tuple[str, ...], ...]
    ]  # {part: of each class, its names, in the order of their hashes}
    left_out: str  # what is not read, for a person; '' if there is nothing


def load(config, task, beside: images.OfTeacher | None = None) -> Source:
    """Cuts the images for a task.

    Inputs: {'image': [batch, size, size, 3]}, by images.inputs_of; labels: position of the class in the
    task's classes, which have numbers in the order of their names. In memory, images are kept as a model is
    shown them in an evaluation.

    Args:
      config: `config.dataset`, for the folder, the split, the random variation, and for who draws the
        training examples of a class.
      task: `config.dataset` or `config.teacher.dataset`, for the classes, how many examples of each, and how
        a model is shown images.
      beside: how a teacher is shown the same images, where that is not as the student is.

    Raises:
      UserError: a folder that is not there or laid out otherwise, a class with too few images, an image that
        cannot be read, or classes that are not there.
    """
    listing = listed(paths.given(config.path, WHAT, is_folder=True))
    name = epath.Path(config.path).name or config.path
    classes = images.checked_classes(name, listing.classes, task)
    *parts, held_back = _parts(listing, config.split)
    count = sum(len(of_class) for part in parts for of_class in part)
    of_each, is_drawn = _of_each(task, parts[0], classes), config.labelled_by == 'seed'
    first = None if is_drawn else of_each or None
    by_class = [(parts[0][c][:first], parts[1][c]) for c in classes]
    files = [
        _ordered((file, i) for i, of_class in enumerate(of_part) for file in of_class)
        for of_part in zip(*by_class, strict=True)
    ]
    label_names = tuple(listing.classes[c] for c in classes)
    known_by = {
        f'images of {label}': Files(listing.folder, (*training, *evaluation))
        for label, (training, evaluation) in zip(label_names, by_class, strict=True)
    }
    views = stream.views_of(config, task, beside)
    is_kept = images.is_kept(count, [view.side for view in views[0].values()], config)
    # What is kept is of files as they are now; while they are streamed, each is read when its turn comes.
    stamp = file_digest.combined_stamp(known_by.values()) if is_kept else ''
    records = [_records(listing.folder, part, len(classes), stamp) for part in files]
    spans = [_spans(len(part)) for part in files]
    draw = _draw_of(listing, files[0], of_each, held_back) if of_each and is_drawn else None
    if draw:
        # Files of other classes, too, decide what is drawn.
        chosen = ' '.join(files[0][row][0] for row in draw(0))
        known_by['files that a seed draws'] = _digest(chosen).hex()[:8]
    said = f'{name} {images.said_of(listing.classes, classes)}{data.describe_part(config)}'
    if is_kept:
        examples = [stream.kept(*part) for part in zip(records, map(tuple, spans), views, strict=True)]
        whole = task.copy_and_resolve_references()
        whole.classes, whole.examples_per_class = (), 0
        contents = stream.contents(records[1], spans[1])
        source = images.kept_source(
            name, label_names, examples, config, whole, contents=contents, held_back=0, is_native=False
        )
        if draw:
            pool = data.LabelledPool(source.train, of_each * len(classes), draw)
            source = source._replace(train=pool)
    else:
        stream.whole_test(name, config)
        for part in files:
            _check_files(listing.folder, part)
        # What is shuffled are numbers of files.
        host_bytes = 8 * min(config.shuffle_buffer, len(files[0]))
        source = stream.source_of(
            name, label_names, list(zip(records, spans, strict=True)), config, task, host_bytes, beside
        )
        if draw:
            source = source._replace(
                train=_drawn_stream(listing, files[0], draw, source.train, config, views[0])
            )
    unread = f'{name} holds what is not read: {listing.left_out}' if listing.left_out else ''
    return source._replace(name=said, note=unread, known_by=known_by)


def listed(folder: epath.Path) -> Listing:
    """What is in a folder of images.

    Raises:
      UserError: it is laid out otherwise, or cannot be read.
    """
    try:
        return _listed(folder)
    except UserError:
        raise
    # The client of a bucket has errors of its own.
    except Exception as error:
        raise UserError(f'dataset.path {folder} cannot be read: {reason(error)}.') from error


def _listed(folder):
    left_out = image_files.IgnoredFiles()
    top = _folders(folder, '', left_out)
    halves = [part for part in (TRAIN, TEST) if part in top]
    if len(halves) == 1:
        missing = TEST if halves == [TRAIN] else TRAIN
        raise UserError(f'dataset.path {folder} has {halves[0]} and no {missing}; it must be {WHAT}.')
    parts = halves or [TRAIN]
    left_out.names += [f'{name}/' for name in top if halves and name not in halves]
    found = {}
    for part in parts:
        inside = f'{part}/' if halves else ''
        names = _folders(folder / part, inside, left_out) if halves else top
        found[part] = {name: _files(folder, f'{inside}{name}', left_out) for name in names}
    for part, other in ((TRAIN, TEST), (TEST, TRAIN)) if halves else ():
        if only := sorted(found[part].keys() - found[other].keys()):
            raise UserError(
                f'{folder / part} has the class {only[0]}, which {folder / other} has not; both need all.'
            )
    classes = tuple(sorted(found[TRAIN]))
    if len(classes) < 2:
        raise UserError(f'dataset.path {folder} has {len(classes) or "no"} class; it must be {WHAT}.')
    files = {part: tuple(of_class[name] for name in classes) for part, of_class in found.items()}
    return Listing(str(folder), classes, bool(halves), files, str(left_out))


def _folders(folder, inside, left_out):
    """The names of the folders in a folder, which is `inside` another; all else is left out."""
    found = image_files.list_folder(folder)
    left_out.add(inside, found)
    # A class may be called as an image is.
    folders = [name for name in found.images if (folder / name).is_dir()]
    left_out.names += [f'{inside}{name}' for name in found.images if name not in folders]
    return sorted(found.folders + folders)


def _files(folder, inside, left_out):
    """The images of a class, 'INSIDE/FILE' each, in the order of their hashes."""
    found = image_files.list_folder(folder / inside)
    left_out.add(f'{inside}/', found)
    left_out.names += [f'{inside}/{name}/' for name in found.folders]
    if not found.images:
        raise UserError(f'{folder / inside} has no images; read are {", ".join(decoding.SUFFIXES)}.')
    class_name = inside.rpartition('/')[2]

    def digest(name):
        return hashlib.sha256(f'{class_name}/{name}'.encode()).digest()

    return tuple(f'{inside}/{name}' for name in sorted(found.images, key=digest))


def _parts(listing, split):
    """(training, evaluation, those of training that a search is evaluated on), of each class its files."""
    cut = {}
    for number, name in enumerate(listing.classes):
        training = listing.files[TRAIN][number]
        test = listing.files[TEST][number] if listing.has_test else _first(training)
        left = training if listing.has_test else training[len(test) :]
        evaluation = test if split == 'test' else _first(left)
        train = left if split == 'test' else left[len(evaluation) :]
        if not train or not evaluation:
            needed = 1 + (split == 'validation') + (not listing.has_test)
            place = f'{listing.folder}/{TRAIN}/{name}' if listing.has_test else f'{listing.folder}/{name}'
            images_there = '1 image' if len(training) == 1 else f'{len(training)} images'
            raise UserError(
                f'{place} has {images_there}; with dataset.split={split} a class takes {needed} at the least.'
            )
        cut[name] = train, evaluation, _first(left) if split == 'test' else ()
    return tuple(zip(*cut.values(), strict=True))


def _first(files):
    """What is cut off the files of a class."""
    return files[: max(1, round(SHARE * len(files)))]


def _of_each(task, train, classes):
    """How many training images of each class a task takes; 0 for all."""
    fewest = min(len(train[c]) for c in classes)
    if task.examples_per_class > fewest:
        raise images.too_few(task.examples_per_class, fewest)
    return task.examples_per_class


def _digest(file):
    return hashlib.sha256(file.encode()).digest()


def _ordered(files):
    """Some (file, label) in an order that mixes the classes."""
    return tuple(sorted(files, key=lambda file: _digest(file[0])))


def _draw_of(listing, files, of_each, held_back):
    """LabelledPool.rows of some training files, whose places are those among all files of training."""
    everything = sorted((file for of_class in listing.files[TRAIN] for file in of_class), key=_digest)
    place_of = {file: place for place, file in enumerate(everything)}
    last = {file for of_class in held_back for file in of_class}
    places = np.array([place_of[file] for file, _ in files])
    is_held_back = np.array([file in last for file, _ in files])
    labels = np.array([label for _, label in files])
    return lambda number: data.draw_rows(number, labels, of_each, places, is_held_back)


def _drawn_stream(listing, files, draw, whole, config, views):
    """A TrainStream of the files that each seed draws, shown by views, where `whole` is that of all."""
    num_classes = len({label for _, label in files})

    def records_of(number):
        chosen = tuple(files[row] for row in draw(number))
        return _records(listing.folder, chosen, num_classes, stamp=''), _spans(len(chosen))

    count = len(draw(0))
    return whole._replace(
        count=count,
        open=functools.partial(stream.train_batches, records_of, config, views),
        host_bytes=8 * min(config.shuffle_buffer, count),
        pass_over=lambda number: stream.evaluation_stream(*records_of(number), views),
        is_drawn=True,
    )


def _spans(count):
    """The numbers of files, in spans of equal size."""
    size = -(-count // MOST_SPANS)
    return [Span('', start, min(size, count - start)) for start in range(0, count, size)]


def _records(folder, files, num_classes, stamp):
    """The records of some (file, label), by `_ordered`: their numbers."""
    names, labels = zip(*files, strict=True)

    @functools.cache
    def constants():
        tf = stream.tensorflow()
        # Not in the function of a dataset, whose program would have them as they are.
        with tf.init_scope():
            return tf.constant(names), tf.constant(labels)

    def parsed(number):
        tf = stream.tensorflow()
        files, classes = constants()
        path = tf.strings.join([folder, '/', files[number]])
        return {'image': tf.io.read_file(path), 'label': classes[number], 'file_name': path}

    def opened(path, skip, take):
        return stream.tensorflow().data.Dataset.range(skip, skip + take)

    return Records(
        folder.rstrip('/').rpartition('/')[2],
        num_classes,
        (folder, names, labels, stamp),
        opened,
        parsed,
        stream.decode_by_pil,
    )


def _check_files(folder, files):
    """Refuses a file that begins as no image does; what is kept is decoded at once instead."""
    for name, _ in files:
        path = epath.Path(folder) / name
        try:
            with path.open('rb') as file:
                decoding.check(file)
        except ValueError as error:
            raise UserError(f'{path} cannot be decoded ({error}); replace it or take it away.') from error
        except Exception as error:
            raise UserError(f'{path} cannot be read: {reason(error)}.') from error
