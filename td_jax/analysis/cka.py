"""How alike a student's representations are to its teacher's, class by class (arXiv 2310.03188, Figure 3).

For each class, linear CKA over some evaluation examples between what the student computes (s_g, e_g and its
message m_g) and what the teacher does (s_h, e_h, m_h). The paper shows m_g beside s_h and e_h; m_h is added.
Several runs, say of TD and of a one-way method, stand side by side. A method without encoders has no
messages, and its heat map no rows and columns for them.
"""

import json
import os
import pathlib
import tempfile
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

import td_jax
from td_jax.analysis import heat_map
from td_jax.data import base as data
from td_jax.errors import UserError
from td_jax.method import objectives
from td_jax.models import base
from td_jax.training import finished as finished_runs
from td_jax.training import teachers, train_step

ESTIMATOR = (
    'linear CKA, the biased estimator from HSIC: |Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|), Frobenius norms, '
    'features centred over examples, tokens flattened (Kornblith et al. 2019); 0 where features are constant'
)
# Two centred examples are v and -v, whatever the features: their CKA is always 1 and says nothing.
FEWEST = 3
NUMBERS, PICTURE = 'cka.json', 'cka.png'
STUDENT, TEACHER = ('s_g', 'e_g', 'm_g'), ('s_h', 'e_h', 'm_h')


# --- The number ------------------------------------------------------------------------------------


def gram(x) -> np.ndarray:
    """Xc Xc^T of features centred over examples, in float64 and on a scale of its own.

    A feature that differs by no more than the rounding of its type is constant, and adds nothing.

    Args:
      x: [n, ...], one row an example; what follows the first axis is flattened.

    Returns:
      [n, n]; all zeros where every feature is constant

    Raises:
      ValueError: fewer than two examples, or numbers that are not finite.
    """
    x = np.asarray(x)
    if x.ndim < 1 or len(x) < 2:
        raise ValueError(f'CKA compares at least 2 examples; these are {x.shape}.')
    rounding = float(jnp.finfo(x.dtype).eps) if jnp.issubdtype(x.dtype, jnp.floating) else 0.0
    x = x.reshape(len(x), -1).astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError('CKA is of finite numbers.')
    if not x.size:
        return np.zeros((len(x), len(x)))
    centred = x - x.mean(axis=0)
    varies = abs(centred).max(axis=0) > rounding * abs(x).max(axis=0)
    centred = np.where(varies, centred, 0.0)
    # CKA does not depend on the scale, but squares of squares of very small or large numbers have no place
    # in a float64.
    centred /= abs(centred).max() or 1.0
    return centred @ centred.T


def alignment(gram_x, gram_y) -> float:
    """CKA of two Gram matrices: <K, L> / (|K| |L|), between 0 and 1; 0 where one of them is all zeros."""
    if gram_x.shape != gram_y.shape:
        raise ValueError(f'Grams {gram_x.shape} and {gram_y.shape} are not of the same examples.')
    norms = np.linalg.norm(gram_x) * np.linalg.norm(gram_y)
    return float(np.clip(np.sum(gram_x * gram_y) / norms, 0.0, 1.0)) if norms else 0.0


def linear_cka(x, y) -> float:
    """Linear CKA of two representations of the same examples.

        CKA(X, Y) = |Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|)

    with Frobenius norms, Xc and Yc centred over examples (Kornblith et al. 2019, section 3): the biased
    estimator, HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)). It is computed from the Gram matrices of the
    examples, whose size does not depend on the number of features. With few examples and many features it
    is far above 0 even for representations that have nothing in common: compare numbers of the same examples
    and similar widths.

    Args:
      x: [n, ...]
      y: [n, ...], of the same n >= 2 examples.

    Returns:
      Between 0 and 1. 1 for representations that are alike but for a rotation, a scale and a shift; 0 where
      one of them is the same for all examples.

    Raises:
      ValueError: fewer than two examples, another number of them in y, or numbers that are not finite.
    """
    return alignment(gram(x), gram(y))


# --- The representations ---------------------------------------------------------------------------


def gather(source: data.Source, count: int) -> dict[int, dict[str, np.ndarray]]:
    """The first evaluation examples of each class.

    Args:
      source: the data.
      count: how many of each class at most.

    Returns:
      {class: {name: [up to count, ...]}}, classes in order, those without any left out
    """
    found = {}
    if isinstance(source.evaluation, dict):
        batches = iter([(source.evaluation, np.ones(data.count(source.evaluation)))])
    else:
        batches = source.evaluation.open(max(count, 32), 0, 1)
    for examples, mask in batches:
        labels = np.where(mask > 0, examples['labels'], -1)
        for label in np.unique(labels[labels >= 0]):
            parts = found.setdefault(int(label), [])
            wanted = count - sum(len(part['labels']) for part in parts)
            if wanted:
                parts.append(data.take(examples, np.flatnonzero(labels == label)[:wanted]))
        totals = [sum(len(part['labels']) for part in parts) for parts in found.values()]
        if len(totals) == len(source.label_names) and min(totals) == count:
            break
    return {
        label: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for label, parts in sorted(found.items())
    }


def states_of(finished: finished_runs.Finished):
    """Makes f(examples) -> {name: [n, ...]}, what both models of a run compute without dropout.

    The names are those of STUDENT and TEACHER, the messages among them where the method has encoders.
    """
    config, teacher = finished.config, finished.teacher
    encoder = objectives.encoder_of(config)
    models = (
        (STUDENT, finished.student, finished.source, 'student_encoder'),
        (TEACHER, teacher.model, teacher.source, 'teacher_encoder'),
    )

    @jax.jit
    def run(both_params, communication, examples):
        states = {}
        for (s_name, e_name, m_name), model, source, encoder_name in models:
            params = both_params[s_name]
            s, e, _ = base.activations(model, params, source.inputs(source.tables, examples, None))
            states |= {s_name: s, e_name: e}
            if encoder_name in communication:
                states[m_name] = objectives.bind(encoder, communication[encoder_name])(s, e, None)
        return states

    both_params = {STUDENT[0]: finished.params[train_step.STUDENT], TEACHER[0]: teacher.params}
    communication = finished.params.get(train_step.COMMUNICATION, {})

    def states(examples):
        count, size = len(examples['labels']), config.eval_batch_size
        parts = [
            run(both_params, communication, data.take(examples, slice(start, start + size)))
            for start in range(0, count, size)
        ]
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    return states


def compare(finished: finished_runs.Finished, classes: dict) -> dict[int, dict[str, float]]:
    """CKA of each class between all that the student and the teacher have.

    Args:
      finished: a run with a teacher.
      classes: {class: examples}, at least two of each.

    Returns:
      {class: {'s_g,s_h': between 0 and 1, ...}}

    Raises:
      UserError: a model computes numbers that are not finite.
    """
    states, values = states_of(finished), {}
    for label, examples in classes.items():
        grams = {}
        for name, x in states(examples).items():
            try:
                grams[name] = gram(x)
            except ValueError as error:
                where = f'class {finished.source.label_names[label]}'
                raise UserError(f'{name} of {finished.config.method} on {where}: {error}') from error
        values[label] = {
            f'{ours},{theirs}': alignment(grams[ours], grams[theirs])
            for ours in STUDENT
            for theirs in TEACHER
            if ours in grams and theirs in grams
        }
    return values


# --- Several runs ----------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """What the command finds."""

    dataset: str
    split: str
    asked: int  # examples of each class
    used: dict[str, int]  # {class: examples}
    left_out: dict[str, int]  # {class: examples}, too few to compare
    values: dict[str, dict[str, dict[str, float]]]  # {run: {class: {pair: CKA}}}
    runs: dict[str, dict]  # {run: where it is and which seed}

    def means(self) -> dict[str, dict[str, float]]:
        """{run: {pair: mean over classes}}."""
        return {
            run: {pair: float(np.mean([row[pair] for row in rows.values()])) for pair in _pairs(rows)}
            for run, rows in self.values.items()
        }


def _pairs(rows):
    """The pairs of a run, the same for all of its classes."""
    return list(next(iter(rows.values())))


def analyse(folders, examples: int, seed_index: int = 0) -> Comparison:
    """Compares student and teacher of some finished runs on the same examples.

    Args:
      folders: paths of their workdirs.
      examples: of each class; classes that have fewer are compared on what is there, if it is FEWEST.
      seed_index: which seed of each run, counted from 0.

    Raises:
      UserError: no finished run, one without a teacher or classes, runs of different data, or too few
        examples.
    """
    if examples < FEWEST:
        raise UserError(
            f'--examples is {examples}; CKA needs at least {FEWEST} of a class (of two it is always 1).'
        )
    if len(set(folders)) < len(folders):
        raise UserError('--workdir names the same folder twice.')
    runs = [teachers.finished_with_teacher(folder, seed_index) for folder in folders]
    names = _names(runs, folders)
    for folder, run in zip(folders, runs, strict=True):
        if run.teacher is None:
            raise UserError(f'{folder} is a run of {run.config.method} without a teacher to compare with.')
        if run.source.task != 'classification':
            raise UserError(f'{folder} is a run on {run.source.name}, which has no classes to compare by.')
        if _task(run) != _task(runs[0]):
            raise UserError(
                f'{folders[0]} and {folder} are evaluated on different data: {_said(runs[0])}, {_said(run)}.'
            )
    label_names = [str(name) for name in runs[0].source.label_names]
    found = gather(runs[0].source, examples)
    counts = {i: len(found[i]['labels']) if i in found else 0 for i in range(len(label_names))}
    if max(counts.values()) < FEWEST:
        raise UserError(f'{_said(runs[0])} has no class with {FEWEST} evaluation examples to compare.')
    values = {}
    for name, run in zip(names, runs, strict=True):
        # Images may be kept at another size for another run.
        own = (
            found
            if run is runs[0] or isinstance(run.source.evaluation, dict)
            else gather(run.source, examples)
        )
        compared = compare(run, {i: own[i] for i in own if counts[i] >= FEWEST})
        values[name] = {label_names[i]: row for i, row in compared.items()}
    return Comparison(
        dataset=runs[0].source.name,
        split=runs[0].config.dataset.split,
        asked=examples,
        used={label_names[i]: count for i, count in counts.items() if count >= FEWEST},
        left_out={label_names[i]: count for i, count in counts.items() if count < FEWEST},
        values=values,
        runs={
            name: {'workdir': str(folder), 'method': run.config.method, 'seed': run.config.seed + seed_index}
            for name, folder, run in zip(names, folders, runs, strict=True)
        },
    )


def _names(runs, folders):
    """What each run is called: its method, and its folder where that is not enough."""
    methods = [run.config.method for run in runs]
    last_parts = [folder.name for folder in folders]
    places = last_parts if len(set(last_parts)) == len(folders) else folders
    return [
        method if methods.count(method) == 1 else f'{method} ({place})'
        for method, place in zip(methods, places, strict=True)
    ]


def _task(run):
    return run.source.name, run.config.dataset.split, tuple(run.source.label_names)


def _said(run):
    return f'{run.source.name} ({run.config.dataset.split})'


# --- What comes out --------------------------------------------------------------------------------


def to_json(found: Comparison) -> str:
    """The numbers, and what they are."""
    content = {
        'estimator': ESTIMATOR,
        'dataset': found.dataset,
        'split': found.split,
        'examples': found.asked,
        'examples_by_class': found.used,
        'left_out': found.left_out,
        'runs': found.runs,
        'cka': found.values,
        'mean': found.means(),
        'versions': {
            'jax': jax.__version__,
            'flax': flax.__version__,
            'numpy': np.__version__,
            'td_jax': td_jax.__version__,
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + '\n'


def to_markdown(found: Comparison) -> str:
    """A table of the means over classes, a row a pair and a column a run, and what is to be said of it."""
    means = found.means()
    pairs = [f'{ours},{theirs}' for ours in STUDENT for theirs in TEACHER]
    rows = [['student, teacher', *means], ['---'] * (1 + len(means))]
    for pair in pairs:
        cells = [f'{row[pair]:.3f}' if pair in row else '' for row in means.values()]
        if any(cells):
            rows.append([pair.replace(',', ', '), *cells])
    lines = [f'| {" | ".join(row)} |' for row in rows]
    lines += ['', f'Mean over {len(found.used)} classes of {found.dataset} ({found.split}).']
    fewer = [f'{name} ({count})' for name, count in found.used.items() if count < found.asked]
    if fewer:
        lines.append(f'Fewer than {found.asked} examples of {", ".join(fewer)}.')
    if found.left_out:
        gone = ', '.join(f'{name} ({count})' for name, count in found.left_out.items())
        lines.append(f'Left out, with fewer than {FEWEST} examples: {gone}.')
    return '\n'.join(lines)


def save(found: Comparison, folder: pathlib.Path):
    """Writes both files into a folder, each of them whole; what is there from before is replaced.

    Raises:
      UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix='.') as temporary:
            made = pathlib.Path(temporary)
            heat_map.draw(found.values, made / PICTURE)
            (made / NUMBERS).write_text(to_json(found))
            for name in (PICTURE, NUMBERS):
                os.replace(made / name, folder / name)
    except OSError as error:
        raise UserError(f'--output {folder} cannot be written: {error.strerror or error}.') from error
