"""A data set as training sees it, and the order in which its examples are drawn."""

import hashlib
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax import quantities
from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.randomness import derive_seed

# Field of an example: its image for a teacher that is shown others than its student.
TEACHER_IMAGE = 'teacher_image'


class TrainStream(NamedTuple):
    """Training examples that do not fit in memory.

    open(number, step, batch_size, rows) -> endless iterator over the batches from `step` on, of which `rows`
      (a slice) are given: {name: [rows, ...]}. A batch, random variation included,
      depends on the number of a seed, step and batch_size alone.
    host_bytes: a lower bound on what an open stream holds in the machine's memory.
    pass_over(number) -> the examples of a seed, once each and without random variation; None where a stream
      cannot give them.
    is_drawn: whether each seed has examples of its own.
    """

    count: int  # examples in an epoch
    example: dict[str, np.ndarray]  # {name: [1, ...]}, zeros of the right shapes and types
    open: Callable[..., Iterator[dict[str, np.ndarray]]]
    host_bytes: int = 0
    pass_over: Callable[[int], 'EvaluationStream'] | None = None
    is_drawn: bool = False


class LabelledPool(NamedTuple):
    """Training examples in memory, of which each seed draws some for itself.

    rows(number) -> [count], which of `examples` a seed trains on, by its number alone.
    rest(number) -> which of `examples` are left, in a random order; None where nothing is done with them.
    """

    examples: dict[str, np.ndarray]
    count: int  # that a seed draws
    rows: Callable[[int], np.ndarray]
    rest: Callable[[int], np.ndarray] | None = None


class Unlabelled(NamedTuple):
    """Training examples in memory that every term but the task's reads, and whose labels nothing reads.

    They are the same for all seeds, `examples`, or those of a LabelledPool at `rows`.
    """

    count: int  # of a seed
    # {name: [count, ...]}, the fields of the training examples without their labels.
    examples: dict[str, np.ndarray] | None = None
    rows: Callable[[int], np.ndarray] | None = None  # rows(number of a seed) -> [count]
    # Images that `examples` are decoded from, as of Source.known_by; None: known by their arrays.
    files: 'Files | None' = None


class EvaluationStream(NamedTuple):
    """Evaluation examples that do not fit in memory.

    open(batch_size, part, parts) -> iterator over (examples {name: [batch_size, ...]}, mask [batch_size]),
      one pass over the part-th of `parts` disjoint shares of the examples. Every part has as many batches;
      what fills them up has mask 0.
    """

    count: int  # examples of all parts
    open: Callable[..., Iterator[tuple[dict[str, np.ndarray], np.ndarray]]]


class Picture(NamedTuple):
    """The preprocessing of an image of any size, for files that are not of the data set."""

    view: View  # how it is resized
    is_rounded: bool  # whether resized pixels are rounded, as where examples are kept resized
    # inputs(pixels) -> {name: [batch, ...]}, inputs of the model from resized pixels [batch, side, side, 3],
    # float32 from 0 to 255, red, green and blue.
    inputs: Callable[[jax.Array], dict[str, jax.Array]]


class Ids(NamedTuple):
    """The ids that the numbers in a field of the examples stand for."""

    column: str  # name of their column in a table
    raw: np.ndarray  # [ids], text; a number is an index into it
    is_known: np.ndarray  # [ids] bool, whether the id occurs in training; others count as unknown


class Files(NamedTuple):
    """Files that examples are decoded from."""

    folder: str  # on this machine or in a bucket
    names: tuple[str, ...]  # paths below the folder


class Source(NamedTuple):
    """A data set cut for one task.

    Examples are dicts of arrays with one row per example; `labels` is among them. All sources of a data set
    share that form, whatever their part of it, so a teacher's `inputs` can read a student's examples.
    """

    name: str  # for a person
    train: dict[str, np.ndarray] | LabelledPool | TrainStream
    evaluation: dict[str, np.ndarray] | EvaluationStream
    task: str  # a name of objectives.TASK_LOSSES
    label_names: tuple[str, ...]  # what each output predicts
    vocabularies: dict[str, int]  # rows of each id or bag-of-words input
    tables: Any  # a tree of arrays that `inputs` reads
    # inputs(tables, examples, key) -> {name: [batch, ...]}, what a model is given; a key adds the random
    # variation of training, None leaves it out.
    inputs: Callable[..., dict[str, jax.Array]]
    # Of evaluation examples in memory: [examples], the number of the unit that each belongs to, such as a
    # user. A bootstrap draws units. None: each example is a unit.
    units: np.ndarray | None = None
    # {name: [examples] bool}, parts with a metric of their own.
    groups: Mapping[str, np.ndarray] = types.MappingProxyType({})
    # Of images: task (config.dataset or config.teacher.dataset) -> `inputs` for the model of that task.
    inputs_for: Callable[[Any], Callable] | None = None
    picture: Picture | None = None
    # Of ratings: {field of the examples: its ids}, of users and of items. `inputs` takes the number after the
    # last for an id that is not among them.
    ids: Mapping[str, Ids] = types.MappingProxyType({})
    # Of ratings: {field of ids: [training examples] its numbers}, the pairs of user and item in training.
    pairs: Mapping[str, np.ndarray] = types.MappingProxyType({})
    # Further training examples without labels; only for training examples in memory.
    unlabelled: Unlabelled | None = None
    # {part of the data: text, or Files whose content counts}, by which later changes of the examples are
    # detected. None: by their arrays in memory. The pixels of a JPEG do not serve: they differ between
    # machines.
    known_by: Mapping[str, str | Files] | None = None
    # A line for a person about data that were ignored; '' where there are none.
    note: str = ''


def count(examples: dict | LabelledPool | TrainStream | EvaluationStream) -> int:
    """The number of examples; of a pool, that of each seed."""
    return len(examples['labels']) if isinstance(examples, dict) else examples.count


def arrays_in_memory(examples: dict | LabelledPool | TrainStream | EvaluationStream) -> dict | None:
    """The arrays of examples in memory, of a pool those of all seeds; None for a stream."""
    if isinstance(examples, LabelledPool):
        return examples.examples
    return examples if isinstance(examples, dict) else None


def check(source: Source):
    """Refuses a data set that cannot be trained on or evaluated; of a stream only its counts are known here.

    Raises:
      UserError: no examples, a number that is not finite, or a label outside its range; names the data set,
        the part, the field, and the first row that is wrong.
    """
    for part, examples in (('training', source.train), ('evaluation', source.evaluation)):
        if not count(examples):
            raise UserError(f'dataset {source.name} has no {part} examples.')
        in_memory = arrays_in_memory(examples)
        if in_memory is None:
            continue
        name = f'dataset {source.name}, {part} examples'
        for field, array in in_memory.items():
            if np.issubdtype(array.dtype, np.floating):
                refuse_rows(name, field, array, np.isfinite(array), 'a finite number')
        if source.task == 'classification':
            check_labels(name, in_memory['labels'], len(source.label_names))
    if source.unlabelled is not None:
        _check_unlabelled(source)


def _check_unlabelled(source):
    """Refuses examples without labels that a step could not read together with those that have labels."""
    name, examples = f'dataset {source.name}, examples without labels', source.unlabelled.examples
    if isinstance(source.train, TrainStream):
        raise UserError(
            f'dataset.unlabelled takes training examples in memory, but {source.name} is streamed: raise '
            'dataset.kept_gb, or leave dataset.unlabelled empty.'
        )
    if not source.unlabelled.count:
        raise UserError(f'{name}: there are none.')
    if examples is None:
        return
    expected = {
        field: (array.shape[1:], array.dtype)
        for field, array in one_example(source).items()
        if field != 'labels'
    }
    for field in sorted(expected.keys() | examples.keys()):
        array = examples.get(field)
        actual = None if array is None else (array.shape[1:], array.dtype)
        if actual != expected.get(field):
            forms = [_describe_field(form) for form in (actual, expected.get(field))]
            raise UserError(
                f'{name}: {field} is {forms[0]}, but {forms[1]} in those with labels; both need the same '
                'fields, except for labels.'
            )
        if len(array) != source.unlabelled.count:
            raise UserError(f'{name}: {field} has {len(array)} rows, but count is {source.unlabelled.count}.')
        if np.issubdtype(array.dtype, np.floating):
            refuse_rows(name, field, array, np.isfinite(array), 'a finite number')


def _describe_field(field):
    return 'not there' if field is None else f'{field[1]} {list(field[0])}'


def check_labels(name: str, labels: np.ndarray, num_labels: int):
    """Refuses labels outside 0 to num_labels - 1, where a loss would be NaN or that of another class.

    Args:
      name: of the data set or a part of it.
      labels: [examples], whole numbers.
      num_labels: how many there are.

    Raises:
      UserError: names the first row that is wrong.
    """
    is_right = (labels >= 0) & (labels < num_labels)
    refuse_rows(name, 'label', labels, is_right, f'from 0 to {num_labels - 1}')


def refuse_rows(name: str, field: str, values, is_right: np.ndarray, what: str):
    """Refuses a field of a data set that holds a wrong value.

    Args:
      name: of the data set or a part of it.
      field: its name.
      values: [rows, ...], what is in it.
      is_right: of the same shape.
      what: what each must be.

    Raises:
      UserError: names the first row that holds a wrong value, and that.
    """
    if is_right.all():
        return
    index = np.unravel_index(np.argmin(is_right), is_right.shape)
    raise UserError(
        f'{name}: {field} of row {index[0]} {"is" if len(index) == 1 else "holds"} {values[index]!s:.40}; it '
        f'must be {what}. Repair the data set, or prepare it anew.'
    )


def one_example(source: Source) -> dict[str, np.ndarray]:
    """One training example, {name: [1, ...]}; of a stream, zeros of the right shapes and types."""
    arrays = arrays_in_memory(source.train)
    return source.train.example if arrays is None else take(arrays, np.arange(1))


def take(examples: dict, rows) -> dict:
    """Selects the examples at `rows`."""
    return {name: array[rows] for name, array in examples.items()}


def number_by_content(examples: dict) -> np.ndarray:
    """A number of each example, [examples] uint32: the CRC32 of what its student is shown."""
    fields = [examples[name] for name in sorted(examples.keys() - {'labels', TEACHER_IMAGE})]
    numbers = np.zeros(count(examples), np.uint32)
    for i in range(len(numbers)):
        for field in fields:
            numbers[i] = zlib.crc32(field[i].tobytes(), int(numbers[i]))
    return numbers


def draw_rows(
    number: int, labels: np.ndarray, per_class: int, places: np.ndarray, is_held_back: np.ndarray
) -> np.ndarray:
    """Draws the examples of each class that have the lowest lots; each place of a data set has one lot.

    A seed therefore draws the same examples of a class whatever other classes a task has, a smaller draw is
    part of a larger one, and a search draws the same examples as training for the test.

    Args:
      number: of the seed.
      labels: [examples], the class of each.
      per_class: how many to draw of each class; every class has at least as many.
      places: [examples], whole numbers from 0, of the data set.
      is_held_back: [examples] bool, those that a search is evaluated on, which are drawn where the others of
        a class are too few.

    Returns:
      [per_class * classes] rows, in ascending order.
    """
    order = _order_by_lots(number, places, is_held_back)
    return np.sort(np.concatenate([order[labels[order] == c][:per_class] for c in np.unique(labels)]))


def _order_by_lots(number, places, is_held_back):
    """Sorts examples by their lots, those held back last; the arguments are those of `draw_rows`."""
    # NumPy guarantees only for the raw numbers of PCG64 that they never change.
    lots = np.random.PCG64(derive_seed(number, 'labelled')).random_raw(int(places.max()) + 1)[places]
    return np.lexsort((lots, is_held_back))


# {half of a test, by the last bit of the SHA-256 of an image: suffix of the data set's name}
TEST_PARTS = {'development': ', development half of the test', 'held_out': ', held-out half of the test'}


def describe_part(config) -> str:
    """Names the half of the test that is evaluated, as a suffix of a data set's name; '' for all."""
    return TEST_PARTS.get(config.test_part, '') if config.split == 'test' else ''


def rows_of_part(contents: Iterable[bytes], config) -> np.ndarray | slice:
    """Selects the evaluation images of dataset.test_part.

    Args:
      contents: of the images, in order; read where they are asked for.
      config: `config.dataset`.
    """
    if not describe_part(config):
        return slice(None)
    half = list(TEST_PARTS).index(config.test_part)
    return np.flatnonzero([hashlib.sha256(content).digest()[-1] % 2 == half for content in contents])


REST = 'rest'


def is_of_training(unlabelled: str) -> bool:
    """Whether a dataset.unlabelled names training examples of the data set: 'rest', or a number of them."""
    return unlabelled == REST or (unlabelled.isascii() and unlabelled.isdecimal())


def read_count(unlabelled: str, left: int) -> int:
    """The number of training examples that a dataset.unlabelled names, of `left` without labels.

    Raises:
      UserError: it has too many digits for any number of examples.
    """
    if unlabelled == REST:
        return left
    if len(unlabelled) > quantities.MOST_DIGITS:
        raise UserError(f'dataset.unlabelled has {len(unlabelled)} digits; name fewer examples.')
    return int(unlabelled)


def makes_pool(config, task) -> bool:
    """Whether the training examples of a task are a LabelledPool.

    Args:
      config: `config.dataset`.
      task: that, or `config.teacher.dataset`, which has no examples without labels.
    """
    has_rest = is_of_training(task.get('unlabelled', ''))
    return bool(task.examples_per_class) and (config.labelled_by == 'seed' or has_rest)


def make_labelled_pool(
    examples: dict,
    per_class: int,
    places: np.ndarray,
    is_held_back: np.ndarray,
    first_rows: np.ndarray | None = None,
) -> LabelledPool:
    """Makes a pool from which each seed draws examples by `draw_rows`, whose arguments these are.

    With `first_rows` nothing is drawn: these have labels for all seeds, and the rest has one order.
    """
    labels, is_drawn = examples['labels'], first_rows is None

    def rows(number):
        return draw_rows(number, labels, per_class, places, is_held_back) if is_drawn else first_rows

    def rest(number):
        order = _order_by_lots(number if is_drawn else 0, places, is_held_back)
        return order[~np.isin(order, rows(number))]

    return LabelledPool(examples, per_class * len(np.unique(labels)), rows, rest)


def find_first_rows(labels: np.ndarray, per_class: int, config) -> np.ndarray | None:
    """Finds the first examples of each class, in ascending order; None where each seed draws its own.

    Args:
      labels: [examples], the class of each.
      per_class: how many of each class.
      config: `config.dataset`.
    """
    if config.labelled_by == 'seed':
        return None
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)]))


def epoch_order(key: jax.Array, epoch, num_examples: int) -> jax.Array:
    """The order of the examples in an epoch, [num_examples]; depends on key and epoch alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(num_examples, dtype=jnp.int32))


def batch_rows(order: jax.Array, step, batch_size: int) -> jax.Array:
    """The rows of the step's batch, [batch_size].

    An epoch has as many whole batches as fit; the remaining examples come in the order of another epoch.
    """
    start = (step % (order.shape[0] // batch_size)) * batch_size
    return jax.lax.dynamic_slice(order, (start,), (batch_size,))


def padded_batches(examples: dict, batch_size: int) -> tuple[dict, np.ndarray]:
    """Cuts examples into equal batches for an evaluation that counts each of them once.

    Args:
      examples: arrays with one row per example.
      batch_size: rows per batch.

    Returns:
      (batches, mask): arrays [batches, batch_size, ...], the last one filled up with copies of the first
      example of all, and [batches, batch_size] with 0 for these copies.
    """
    count = len(examples['labels'])
    num_batches = -(-count // batch_size)
    rows = np.arange(num_batches * batch_size)
    mask = (rows < count).astype(np.float32)
    rows = np.where(rows < count, rows, 0).reshape(num_batches, batch_size)
    return take(examples, rows), mask.reshape(num_batches, batch_size)
