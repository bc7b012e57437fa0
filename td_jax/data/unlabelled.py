"""Training examples without labels, which dataset.unlabelled adds to a data set.

They are of one of four kinds: what dataset.examples_per_class leaves of the training part, a folder of
images, drawn pairs of known users and items without a rating, or a table of pairs. They have the fields of
the training examples except for labels; labels that a data set has of them are not read.
"""

import functools

import jax.numpy as jnp
import numpy as np
from etils import epath

from td_jax.data import base as data
from td_jax.data import folders, image_files, images, paths, stream
from td_jax.data import table as data_table
from td_jax.errors import UserError, failure_as_user_error
from td_jax.randomness import derive_seed

OPTION = 'dataset.unlabelled'


def add(source: data.Source, config, teacher_views: images.TeacherViews | None = None) -> data.Source:
    """Adds the examples without labels of `config.unlabelled` to the data of a student.

    A caller's own data set may have made them itself; a LabelledPool of one has the rest of its examples.

    Args:
      source: the student's data.
      config: `config.dataset`, whose `unlabelled` is not empty.
      teacher_views: how a teacher is shown the same images, if other than its student.

    Raises:
      UserError: there are no such examples, or they cannot be read.
    """
    if source.unlabelled is not None:
        return source
    if isinstance(source.train, data.TrainStream):
        raise UserError(_explain_stream(source, config))
    if data.is_of_training(config.unlabelled):
        take = _draw_pairs if source.ids else _take_rest
        return source._replace(unlabelled=take(source, config))
    if source.ids:
        return _read_pairs(source, config)
    if config.name in ('digits', *images.NAMES):
        return _load_images(source, config, teacher_views)
    raise UserError(
        f'{OPTION} is {config.unlabelled}, but the data set {config.name} brings no examples without labels '
        '(Source.unlabelled); leave it empty.'
    )


def _explain_stream(source, config):
    ways = ['leave it empty']
    if config.name in images.MEMORY_OR_STREAM:
        ways.insert(0, 'raise dataset.kept_gb, which keeps images in memory')
    return (
        f'{OPTION} is {config.unlabelled}, which takes training examples in memory, but {source.name} is '
        f'streamed: {", or ".join(ways)}.'
    )


# --- Examples of the training part -----------------------------------------------------------------


def _take_rest(source, config):
    """What the labelled examples of a LabelledPool leave, or the first of it in the order of lots."""
    pool = source.train
    if not isinstance(pool, data.LabelledPool) or pool.rest is None:
        raise UserError(
            f'{OPTION} is {config.unlabelled}, but all training examples of {source.name} have labels: set '
            'dataset.examples_per_class, or name a folder of images.'
        )
    left = data.count(pool.examples) - pool.count
    count = data.read_count(config.unlabelled, left)
    _check_count(count, left, f'dataset.examples_per_class leaves {left} training examples of {source.name}')
    return data.Unlabelled(count, rows=functools.partial(_select_rest, pool.rest, count))


def _select_rest(rest, count, number):
    return np.sort(rest(number)[:count])


def _check_count(count, available, what):
    if not 0 < count <= available:
        number = f'a number from 1 to {available}' if available else 'nothing'
        raise UserError(f'{OPTION} takes {count} examples, but {what}; name {number}.')


# --- Images of a folder ----------------------------------------------------------------------------


def _load_images(source, config, teacher_views):
    """Adds the images of a folder and its subfolders, resized like the training images."""
    what = f'{data.REST!r}, a number of examples, or a folder of images without labels'
    folder = paths.resolve(config.unlabelled, what, is_folder=True, option=OPTION)
    with failure_as_user_error(f'{OPTION} {folder} cannot be read'):
        listing = image_files.find_images(folder)
    files = tuple(listing.files)
    if not files:
        raise UserError(f'{OPTION} {folder} has no images in it; name {what}.')
    examples = _load_fields(source, config, folder, files, teacher_views)
    unlabelled = data.Unlabelled(len(files), examples, files=data.Files(str(folder), files))
    notes = [source.note, f'{folder} holds what is not read: {listing.ignored}' if listing.ignored else '']
    return source._replace(unlabelled=unlabelled, note='; '.join(filter(None, notes)))


def _load_fields(source, config, folder, files, teacher_views):
    if config.name not in images.NAMES:
        # Digits: the inputs that a prediction makes are the fields of an example.
        view = source.picture.view
        pixels = folders.load_unlabelled(folder, files, {images.IMAGE: view})[images.IMAGE]
        inputs = source.picture.inputs(jnp.asarray(pixels, jnp.float32))
        return {field: np.asarray(array) for field, array in inputs.items()}
    if source.picture.is_rounded:
        views, _ = stream.views_of(config, config, teacher_views)
        sides = [view.side for view in views.values()]
        if not images.fits_in_memory(len(files), sides, config):
            raise UserError(
                f'{OPTION} {folder} has {len(files)} images, which take more than dataset.kept_gb, '
                f'{config.kept_gb}: raise it, or take fewer.'
            )
    else:
        # Data sets that keep images as they are have squares of one size.
        side = data.one_example(source)[images.IMAGE].shape[1]
        views = {images.IMAGE: images.view_of(config, config)._replace(side=side)}
    return folders.load_unlabelled(folder, files, views)


# --- Pairs of a user and an item -------------------------------------------------------------------


def _draw_pairs(source, config):
    """Draws pairs of known users and items that have no rating in training or evaluation, for all seeds."""
    if config.unlabelled == data.REST:
        raise UserError(
            f'{OPTION} is {data.REST}, which is for classes; of ratings name a number of pairs without a '
            'rating, or a CSV or TSV of pairs.'
        )
    user, item = source.ids
    users, items = (np.flatnonzero(ids.is_known) for ids in source.ids.values())
    rated = [_find_codes(part[user], part[item], users, items) for part in (source.train, source.evaluation)]
    rated, total = np.unique(np.concatenate(rated)), len(users) * len(items)
    available = total - len(rated)
    count = data.read_count(config.unlabelled, available)
    _check_count(count, available, f'{available} pairs of known users and items of {source.name} are unrated')
    ranks = _draw_ranks(count, available)
    # A rank counts pairs without a rating: before the i-th rated one are rated[i] - i of them.
    codes = ranks + np.searchsorted(rated - np.arange(len(rated)), ranks, side='right')
    dtype = source.train[user].dtype
    examples = {
        user: users[codes // len(items)].astype(dtype),
        item: items[codes % len(items)].astype(dtype),
    }
    return data.Unlabelled(count, examples)


def _find_codes(user, item, users, items):
    """A number for each pair of known ids: its place in the order of (user, item)."""
    is_known = np.isin(user, users) & np.isin(item, items)
    places = np.searchsorted(users, user[is_known]), np.searchsorted(items, item[is_known])
    return places[0].astype(np.int64) * len(items) + places[1]


def _draw_ranks(count, available):
    """Draws `count` different whole numbers below `available`, in ascending order."""
    # NumPy guarantees only for the raw numbers of PCG64 that they never change.
    generator, drawn = np.random.PCG64(derive_seed(0, 'unlabelled')), np.zeros(0, np.uint64)
    while len(drawn) < count:
        more = np.concatenate([drawn, generator.random_raw(count) % np.uint64(available)])
        _, first = np.unique(more, return_index=True)
        drawn = more[np.sort(first)][:count]
    return np.sort(drawn).astype(np.int64)


def _read_pairs(source, config):
    """Adds the pairs of a table; ids that are not in the data count as unknown."""
    what = 'a number of pairs, or a CSV or TSV of pairs without a rating'
    path = paths.resolve(config.unlabelled, what, is_folder=False, option=OPTION)
    columns = [(f'the column of {field}s', ids.column) for field, ids in source.ids.items()]
    rows = data_table.Rows(epath.Path(path), columns, OPTION)
    numbers = [{str(raw): i for i, raw in enumerate(ids.raw)} for ids in source.ids.values()]
    pairs = []
    for row in rows:
        for cell, (_, column) in zip(row.cells, columns, strict=True):
            if not cell:
                raise UserError(f'{path}, {row.place}: {column} is empty.')
        pairs.append([known.get(cell, len(known)) for cell, known in zip(row.cells, numbers, strict=True)])
    if not pairs:
        raise UserError(f'{OPTION} {path} has a first line and no pairs.')
    dtypes = {field: source.train[field].dtype for field in source.ids}
    examples = {
        field: np.array(column, dtypes[field])
        for field, column in zip(source.ids, zip(*pairs, strict=True), strict=True)
    }
    ignored = [name for name in rows.header if name not in [column for _, column in columns]]
    notes = [source.note, *rows.notes()]
    if ignored:
        notes.append(f'{path.name} has columns that are not read: {", ".join(ignored)}')
    unlabelled = data.Unlabelled(len(pairs), examples)
    return source._replace(unlabelled=unlabelled, note='; '.join(filter(None, notes)))
