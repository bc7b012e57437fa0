"""How alike a student's representations are to its teacher's, class by class (arXiv 2310.03188, Figure 3).

For each class, linear CKA over some evaluation examples between what the student computes (s_g, e_g and its
message m_g) and what the teacher does (s_h, e_h, m_h), for every seed of a run. The paper shows m_g with
s_h and e_h; m_h is added. Several runs, say of TD and of a one-way method, stand side by side. A method
without encoders has no messages, and its heat map no rows and columns for them.
"""

import json
from typing import NamedTuple

import flax
import jax
import numpy as np
from etils import epath

import td_jax
from td_jax import config as config_lib
from td_jax import statistics
from td_jax.analysis import heat_map, linear_cka
from td_jax.data import base as data
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.method import objectives, shared
from td_jax.models import base
from td_jax.training import dispatch, teachers, train_step
from td_jax.training import finished as finished_runs

NUMBERS, PICTURE = 'cka.json', 'cka.png'
STUDENT, TEACHER = ('s_g', 'e_g', 'm_g'), ('s_h', 'e_h', 'm_h')


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


def states_of(finished: finished_runs.FinishedRun):
    """Makes f(examples) -> {name: [n, ...]}, what both models of a run compute without dropout.

    The names are those of STUDENT and TEACHER, the messages among them where the method has encoders.
    """
    config, teacher = finished.config, finished.teacher
    models = (STUDENT, finished.student, finished.source), (TEACHER, teacher.model, teacher.source)

    @jax.jit
    def run(both_params, communication, examples):
        states, sides = {}, []
        for (s_name, e_name, _), model, source in models:
            inputs = source.inputs(source.tables, examples, None)
            activations = base.activations(model, both_params[s_name], inputs)
            states |= {s_name: activations.lower, e_name: activations.upper}
            sides.append(shared.Participant(activations, None, model.registers))
        if 'student_encoder' in communication:
            messages = objectives.objective_of(config).messages(communication, *sides, config, None)
            states |= dict(zip((STUDENT[2], TEACHER[2]), messages, strict=True))
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


def compare(
    finished: finished_runs.FinishedRun, classes: dict, estimator: linear_cka.Estimator
) -> dict[int, dict[str, float]]:
    """CKA of each class between all that the student and the teacher have.

    Args:
      finished: a run with a teacher.
      classes: {class: examples}, enough of each.
      estimator: of ESTIMATORS.

    Returns:
      {class: {'s_g,s_h': at most 1, ...}}

    Raises:
      UserError: a model computes numbers that are not finite.
    """
    states, values = states_of(finished), {}
    for label, examples in classes.items():
        grams = {}
        for name, x in states(examples).items():
            try:
                grams[name] = linear_cka.gram(x)
            except ValueError as error:
                where = f'class {finished.source.label_names[label]}'
                raise UserError(f'{name} of {finished.config.method} on {where}: {error}') from error
        values[label] = {
            f'{ours},{theirs}': linear_cka.alignment(grams[ours], grams[theirs], estimator)
            for ours in STUDENT
            for theirs in TEACHER
            if ours in grams and theirs in grams
        }
    return values


# --- Several runs ----------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """What the command finds."""

    estimator: str
    dataset: str
    split: str
    asked: int  # examples of each class
    used: dict[str, int]  # {class: examples}
    left_out: dict[str, int]  # {class: examples}, too few to compare
    values: dict[str, dict[int, dict[str, dict[str, float]]]]  # {run: {seed: {class: {pair: CKA}}}}
    runs: dict[str, dict]  # {run: its method, and where it is; several places, where its seeds are}

    def by_class(self) -> dict[str, dict[str, dict[str, float]]]:
        """{run: {class: {pair: mean over seeds}}}."""
        return {
            run: {label: _mean([rows[label] for rows in seeds.values()]) for label in self.used}
            for run, seeds in self.values.items()
        }

    def by_seed(self) -> dict[str, dict[int, dict[str, float]]]:
        """{run: {seed: {pair: mean over classes}}}."""
        return {
            run: {seed: _mean(list(rows.values())) for seed, rows in seeds.items()}
            for run, seeds in self.values.items()
        }


def _mean(rows):
    """{pair: mean} of some {pair: value}, which have the same pairs."""
    return {pair: float(np.mean([row[pair] for row in rows])) for pair in rows[0]}


def analyse(folders, examples: int, estimator: str, seed_index: int | None = None) -> Comparison:
    """Compares student and teacher of some finished runs on the same examples.

    Runs that are the same but for their seeds and their teachers' are one, with the seeds of all.

    Args:
      folders: paths of their workdirs.
      examples: of each class; classes that have fewer are compared on what is there, if it is enough for the
        estimator.
      estimator: a name of ESTIMATORS.
      seed_index: which seed of each run, counted from 0; None for all of them.

    Raises:
      UserError: no finished run, one without a teacher or classes, runs of different data, or too few
        examples.
    """
    fewest = linear_cka.ESTIMATORS[estimator].fewest
    if examples < fewest:
        raise UserError(
            f'--examples is {examples}; {estimator} CKA needs at least {fewest} of a class to say anything.'
        )
    if len(set(folders)) < len(folders):
        raise UserError('--workdir names the same folder twice.')
    firsts = [
        teachers.load_finished_with_teacher(folder, seed_index or 0, with_examples=True) for folder in folders
    ]
    groups = _of_other_seeds(firsts, folders)
    names = _names([firsts[group[0]] for group in groups], [folders[group[0]] for group in groups])
    for folder, run in zip(folders, firsts, strict=True):
        if run.teacher is None:
            raise UserError(f'{folder} is a run of {run.config.method} without a teacher to compare with.')
        if run.source.task != 'classification':
            raise UserError(f'{folder} is a run on {run.source.name}, which has no classes to compare by.')
        if _task(run) != _task(firsts[0]):
            raise UserError(
                f'{folders[0]} and {folder} are evaluated on different data: {_said(firsts[0])}, '
                f'{_said(run)}.'
            )
    label_names = [str(name) for name in firsts[0].source.label_names]
    found = gather(firsts[0].source, examples)
    counts = {i: len(found[i]['labels']) if i in found else 0 for i in range(len(label_names))}
    if max(counts.values()) < fewest:
        raise UserError(f'{_said(firsts[0])} has no class with {fewest} evaluation examples to compare.')
    values = {name: {} for name in names}
    for name, member in [(name, i) for name, group in zip(names, groups, strict=True) for i in group]:
        first, folder = firsts[member], folders[member]
        # Images may be kept at another size for another run.
        own = (
            found
            if member == 0 or isinstance(first.source.evaluation, dict)
            else gather(first.source, examples)
        )
        classes = {i: own[i] for i in own if counts[i] >= fewest}
        for i in range(first.config.num_seeds) if seed_index is None else [seed_index]:
            is_first = i == (seed_index or 0)
            run = first if is_first else teachers.load_finished_with_teacher(folder, i, with_examples=True)
            compared = compare(run, classes, linear_cka.ESTIMATORS[estimator])
            values[name][dispatch.seeds(run.config)[i]] = {label_names[c]: row for c, row in compared.items()}
    return Comparison(
        estimator=estimator,
        dataset=firsts[0].source.name,
        split=firsts[0].config.dataset.split,
        asked=examples,
        used={label_names[i]: count for i, count in counts.items() if count >= fewest},
        left_out={label_names[i]: count for i, count in counts.items() if count < fewest},
        values=values,
        runs={
            name: {
                'workdirs': [str(folders[i]) for i in group],
                'method': firsts[group[0]].config.method,
            }
            for name, group in zip(names, groups, strict=True)
        },
    )


# What may differ between the runs of one row.
_SEEDS = ('seed', 'seed_step', 'num_seeds', 'teacher.seed')


def _of_other_seeds(runs, folders):
    """Which runs are one: [their indices], in the order of the first of each; none has a seed of another."""
    configs = [_configs(run.config, folder) for run, folder in zip(runs, folders, strict=True)]
    groups = []
    for i, own in enumerate(configs):
        for group in groups:
            if _differ_in_seeds_alone(own, configs[group[0]]):
                group.append(i)
                break
        else:
            groups.append([i])
    found = []
    for group in groups:
        seeds = [seed for i in group for seed in dispatch.seeds(runs[i].config)]
        found += [group] if len(set(seeds)) == len(seeds) else [[i] for i in group]
    return sorted(found)


def _configs(config, folder):
    """That of a run, and that of its teacher's run where there is one."""
    if not config_lib.trains_teacher(config):
        return [config]
    stored = workdir.read_json(teachers.folder_of(config, folder) / workdir.CONFIG)
    return [config, config_lib.from_json(stored)]


def _differ_in_seeds_alone(ours, theirs):
    return (
        ours[0].teacher.pretrained == theirs[0].teacher.pretrained
        and len(ours) == len(theirs)
        and all(
            set(config_lib.differences(own, json.loads(config_lib.to_json(other)))) <= set(_SEEDS)
            for own, other in zip(ours, theirs, strict=True)
        )
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
        'estimator': linear_cka.ESTIMATORS[found.estimator].text,
        'dataset': found.dataset,
        'split': found.split,
        'examples': found.asked,
        'examples_by_class': found.used,
        'left_out': found.left_out,
        'runs': found.runs,
        'cka': found.by_class(),
        'by_seed': found.by_seed(),
        'versions': {
            'jax': jax.__version__,
            'flax': flax.__version__,
            'numpy': np.__version__,
            'td_jax': td_jax.__version__,
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + '\n'


def to_markdown(found: Comparison) -> str:
    """A table of the means over classes and seeds, and what is to be said of it.

    A row is a pair; a run's column is followed by that of its difference to the first run, paired by seed.
    """
    by_seed = found.by_seed()
    first, *others = by_seed
    head = ['student, teacher', first]
    for run in others:
        head += [run, f'{run} less {first}, paired']
    rows = [head, ['---'] * len(head)]
    for pair in (f'{ours},{theirs}' for ours in STUDENT for theirs in TEACHER):
        cells = [_cell(by_seed[first], pair)]
        for run in others:
            cells += [_cell(by_seed[run], pair), _difference(by_seed[run], by_seed[first], pair)]
        if any(cells):
            rows.append([pair.replace(',', ', '), *cells])
    lines = [f'| {" | ".join(row)} |' for row in rows]
    counts = ', '.join(f'{run} {len(seeds)}' for run, seeds in by_seed.items())
    lines += [
        '',
        f'{found.estimator} linear CKA, mean over {len(found.used)} classes of {found.dataset} '
        f'({found.split}).',
        f'Seeds: {counts}; ± is the half-width of the 95% t interval over them.',
    ]
    fewer = [f'{name} ({count})' for name, count in found.used.items() if count < found.asked]
    if fewer:
        lines.append(f'Fewer than {found.asked} examples of {", ".join(fewer)}.')
    if found.left_out:
        gone = ', '.join(f'{name} ({count})' for name, count in found.left_out.items())
        fewest = linear_cka.ESTIMATORS[found.estimator].fewest
        lines.append(f'Left out, with fewer than {fewest} examples: {gone}.')
    return '\n'.join(lines)


def _cell(seeds, pair):
    """A run's number of a pair; '' where it has none."""
    values = [row[pair] for row in seeds.values() if pair in row]
    return _number(statistics.of(values), '.3f') if values else ''


def _difference(seeds, others, pair):
    """The difference of two runs' numbers of a pair; '' where one has none, or they have other seeds."""
    ours, theirs = ([row[pair] for row in run.values() if pair in row] for run in (seeds, others))
    if seeds.keys() != others.keys() or not ours or not theirs:
        return ''
    return _number(statistics.paired_difference(ours, theirs), '+.3f')


def _number(estimate, form):
    spread = '' if estimate.half_width is None else f' ± {estimate.half_width:.3f}'
    return f'{estimate.mean:{form}}{spread}'


def save(found: Comparison, folder: epath.Path):
    """Writes both files into a folder, each of them whole; what is there from before is replaced.

    Raises:
      UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--output {folder} cannot be written: {error.strerror or error}.') from error
    with workdir.atomic_write(folder / PICTURE) as picture, workdir.atomic_write(folder / NUMBERS) as numbers:
        heat_map.draw(found.by_class(), picture, f'linear CKA, {found.estimator}')
        numbers.write_text(to_json(found))
