"""Compares representations of student and teacher by CKA for each class (arXiv 2310.03188, Figure 3).

For each class and seed of a run, this is linear CKA over some evaluation examples between the student's
representations (s_g, e_g and its message m_g) and the teacher's (s_h, e_h, m_h). The paper shows m_g with s_h
and e_h; m_h is added. Several runs, such as of TD and of a one-way method, are shown together. A method
without encoders has no messages.
"""

import json
from typing import NamedTuple

import flax
import jax
import numpy as np
from etils import epath

import td_jax
from td_jax import config as config_lib
from td_jax import statistics, text_tables
from td_jax.analysis import heat_map, linear_cka
from td_jax.data import base as data
from td_jax.errors import UserError, failure_as_user_error
from td_jax.files import workdir
from td_jax.method import objectives, shared
from td_jax.models import base
from td_jax.training import dispatch, teachers, train_step
from td_jax.training import finished as finished_runs

NUMBERS, PICTURE = 'cka.json', 'cka.png'
STUDENT, TEACHER = ('s_g', 'e_g', 'm_g'), ('s_h', 'e_h', 'm_h')


# --- The representations ---------------------------------------------------------------------------


def gather_examples(source: data.Source, count: int) -> dict[int, dict[str, np.ndarray]]:
    """Gathers the first evaluation examples of each class.

    Args:
      source: the data.
      count: the most examples per class.

    Returns:
      {class: {name: [up to count, ...]}}, classes in order, without empty ones
    """
    parts_by_class = {}
    if isinstance(source.evaluation, dict):
        batches = iter([(source.evaluation, np.ones(data.count(source.evaluation)))])
    else:
        batches = source.evaluation.open(max(count, 32), 0, 1)
    for examples, mask in batches:
        labels = np.where(mask > 0, examples['labels'], -1)
        for label in np.unique(labels[labels >= 0]):
            parts = parts_by_class.setdefault(int(label), [])
            missing = count - sum(len(part['labels']) for part in parts)
            if missing:
                parts.append(data.take(examples, np.flatnonzero(labels == label)[:missing]))
        totals = [sum(len(part['labels']) for part in parts) for parts in parts_by_class.values()]
        if len(totals) == len(source.label_names) and min(totals) == count:
            break
    return {
        label: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for label, parts in sorted(parts_by_class.items())
    }


def make_states(finished: finished_runs.FinishedRun):
    """Makes f(examples) -> {name: [n, ...]}, the representations of both models without dropout.

    The names are those of STUDENT and TEACHER, with messages if the method has encoders.
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
    """Computes CKA per class between all representations of student and teacher.

    Args:
      finished: a run with a teacher.
      classes: {class: examples}, enough for the estimator.
      estimator: of ESTIMATORS.

    Returns:
      {class: {'s_g,s_h': at most 1, ...}}

    Raises:
      UserError: a representation is not finite.
    """
    states, values = make_states(finished), {}
    for label, examples in classes.items():
        grams = {}
        for name, x in states(examples).items():
            try:
                grams[name] = linear_cka.centred_gram(x)
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
    """The CKA of some runs."""

    estimator: str
    dataset: str
    split: str
    requested: int  # examples per class
    used: dict[str, int]  # {class: examples}
    left_out: dict[str, int]  # {class: examples} of classes with too few
    values: dict[str, dict[int, dict[str, dict[str, float]]]]  # {run: {seed: {class: {pair: CKA}}}}
    runs: dict[str, dict]  # {run: {'workdirs', 'method'}}

    def by_class(self) -> dict[str, dict[str, dict[str, float]]]:
        """{run: {class: {pair: mean over seeds}}}."""
        return {
            run: {label: _average([rows[label] for rows in seeds.values()]) for label in self.used}
            for run, seeds in self.values.items()
        }

    def by_seed(self) -> dict[str, dict[int, dict[str, float]]]:
        """{run: {seed: {pair: mean over classes}}}."""
        return {
            run: {seed: _average(list(rows.values())) for seed, rows in seeds.items()}
            for run, seeds in self.values.items()
        }


def _average(rows):
    """Averages dicts {pair: value} with the same pairs."""
    return {pair: float(np.mean([row[pair] for row in rows])) for pair in rows[0]}


def analyse(folders, examples: int, estimator: str, seed_index: int | None = None) -> Comparison:
    """Compares student and teacher of some finished runs on the same examples.

    Runs that differ only in their seeds and those of their teachers are joined.

    Args:
      folders: paths of their workdirs.
      examples: per class; classes with fewer are compared if there are enough for the estimator.
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
    groups = _group_seeds(firsts, folders)
    names = _name_runs([firsts[group[0]] for group in groups], [folders[group[0]] for group in groups])
    for folder, run in zip(folders, firsts, strict=True):
        if run.teacher is None:
            raise UserError(f'{folder} is a run of {run.config.method} without a teacher to compare with.')
        if run.source.task != 'classification':
            raise UserError(f'{folder} is a run on {run.source.name}, which has no classes to compare by.')
        if _identify_task(run) != _identify_task(firsts[0]):
            raise UserError(
                f'{folders[0]} and {folder} are evaluated on different data: {_describe_data(firsts[0])}, '
                f'{_describe_data(run)}.'
            )
    label_names = [str(name) for name in firsts[0].source.label_names]
    examples_by_class = gather_examples(firsts[0].source, examples)
    counts = {
        i: len(examples_by_class[i]['labels']) if i in examples_by_class else 0
        for i in range(len(label_names))
    }
    if max(counts.values()) < fewest:
        raise UserError(
            f'{_describe_data(firsts[0])} has no class with {fewest} evaluation examples to compare.'
        )
    values = {name: {} for name in names}
    for name, member in [(name, i) for name, group in zip(names, groups, strict=True) for i in group]:
        first, folder = firsts[member], folders[member]
        # Another run may have another image size.
        run_examples = (
            examples_by_class
            if member == 0 or isinstance(first.source.evaluation, dict)
            else gather_examples(first.source, examples)
        )
        classes = {i: run_examples[i] for i in run_examples if counts[i] >= fewest}
        for i in range(first.config.num_seeds) if seed_index is None else [seed_index]:
            is_first = i == (seed_index or 0)
            run = first if is_first else teachers.load_finished_with_teacher(folder, i, with_examples=True)
            values_by_class = compare(run, classes, linear_cka.ESTIMATORS[estimator])
            values[name][dispatch.seeds(run.config)[i]] = {
                label_names[c]: row for c, row in values_by_class.items()
            }
    return Comparison(
        estimator=estimator,
        dataset=firsts[0].source.name,
        split=firsts[0].config.dataset.split,
        requested=examples,
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


# The keys that may differ between joined runs.
_SEEDS = ('seed', 'seed_step', 'num_seeds', 'teacher.seed')


def _group_seeds(runs, folders):
    """Groups runs that differ only in seeds, [indices] in order; runs of a group have different seeds."""
    configs = [_run_configs(run.config, folder) for run, folder in zip(runs, folders, strict=True)]
    groups = []
    for i, config in enumerate(configs):
        for group in groups:
            if _differ_only_in_seeds(config, configs[group[0]]):
                group.append(i)
                break
        else:
            groups.append([i])
    split_groups = []
    for group in groups:
        seeds = [seed for i in group for seed in dispatch.seeds(runs[i].config)]
        split_groups += [group] if len(set(seeds)) == len(seeds) else [[i] for i in group]
    return sorted(split_groups)


def _run_configs(config, folder):
    """The configs of a run and of its teacher's run, if there is one."""
    if not config_lib.trains_teacher(config):
        return [config]
    stored = workdir.read_json(teachers.folder_of(config, folder) / workdir.CONFIG)
    return [config, config_lib.from_json(stored)]


def _differ_only_in_seeds(ours, theirs):
    return (
        ours[0].teacher.pretrained == theirs[0].teacher.pretrained
        and len(ours) == len(theirs)
        and all(
            set(config_lib.differences(config, json.loads(config_lib.to_json(other)))) <= set(_SEEDS)
            for config, other in zip(ours, theirs, strict=True)
        )
    )


def _name_runs(runs, folders):
    """Names each run by its method, and by its folder if methods repeat."""
    methods = [run.config.method for run in runs]
    last_parts = [folder.name for folder in folders]
    places = last_parts if len(set(last_parts)) == len(folders) else folders
    return [
        method if methods.count(method) == 1 else f'{method} ({place})'
        for method, place in zip(methods, places, strict=True)
    ]


def _identify_task(run):
    return run.source.name, run.config.dataset.split, tuple(run.source.label_names)


def _describe_data(run):
    return f'{run.source.name} ({run.config.dataset.split})'


# --- Output ----------------------------------------------------------------------------------------


def to_json(comparison: Comparison) -> str:
    """Writes a comparison as JSON."""
    content = {
        'estimator': linear_cka.ESTIMATORS[comparison.estimator].text,
        'dataset': comparison.dataset,
        'split': comparison.split,
        'examples': comparison.requested,
        'examples_by_class': comparison.used,
        'left_out': comparison.left_out,
        'runs': comparison.runs,
        'cka': comparison.by_class(),
        'by_seed': comparison.by_seed(),
        'versions': {
            'jax': jax.__version__,
            'flax': flax.__version__,
            'numpy': np.__version__,
            'td_jax': td_jax.__version__,
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + '\n'


def to_markdown(comparison: Comparison) -> str:
    """Renders the means over classes and seeds as a table, with notes.

    Each row is a pair. The column of a run is followed by its difference to the first run, paired by seed.
    """
    by_seed = comparison.by_seed()
    first, *others = by_seed
    pairs = [f'{ours},{theirs}' for ours in STUDENT for theirs in TEACHER]
    pairs = [pair for pair in pairs if any(_value_cell(seeds, pair) for seeds in by_seed.values())]
    columns = [('student, teacher', [pair.replace(',', ', ') for pair in pairs])]
    columns.append((first, [_value_cell(by_seed[first], pair) for pair in pairs]))
    for run in others:
        columns.append((run, [_value_cell(by_seed[run], pair) for pair in pairs]))
        differences = [_difference_cell(by_seed[run], by_seed[first], pair) for pair in pairs]
        columns.append((f'{run} less {first}, paired', differences))
    lines = text_tables.markdown(columns)
    counts = ', '.join(f'{run} {len(seeds)}' for run, seeds in by_seed.items())
    lines += [
        '',
        f'{comparison.estimator} linear CKA, mean over {len(comparison.used)} classes of '
        f'{comparison.dataset} ({comparison.split}).',
        f'Seeds: {counts}; ± is the half-width of the 95% t interval over them.',
    ]
    fewer = [f'{name} ({count})' for name, count in comparison.used.items() if count < comparison.requested]
    if fewer:
        lines.append(f'Fewer than {comparison.requested} examples of {", ".join(fewer)}.')
    if comparison.left_out:
        too_few = ', '.join(f'{name} ({count})' for name, count in comparison.left_out.items())
        fewest = linear_cka.ESTIMATORS[comparison.estimator].fewest
        lines.append(f'Left out, with fewer than {fewest} examples: {too_few}.')
    return '\n'.join(lines)


def _value_cell(seeds, pair):
    """The cell of a run and a pair; '' without values."""
    values = [row[pair] for row in seeds.values() if pair in row]
    return _format_estimate(statistics.estimate_mean(values)) if values else ''


def _difference_cell(seeds, others, pair):
    """The cell of two runs' difference for a pair; '' without values, or with different seeds."""
    ours, theirs = ([row[pair] for row in run.values() if pair in row] for run in (seeds, others))
    if seeds.keys() != others.keys() or not ours or not theirs:
        return ''
    return _format_estimate(statistics.paired_difference(ours, theirs), signed=True)


def _format_estimate(estimate, signed=False):
    return statistics.format_number(estimate.mean, estimate.half_width, signed, digits=3)


def save(comparison: Comparison, folder: epath.Path):
    """Writes both files into a folder atomically, replacing former ones.

    Raises:
      UserError: the folder cannot be made or written.
    """
    with failure_as_user_error(f'--output {folder} cannot be written'):
        folder.mkdir(parents=True, exist_ok=True)
    with workdir.atomic_write(folder / PICTURE) as picture, workdir.atomic_write(folder / NUMBERS) as numbers:
        heat_map.draw(comparison.by_class(), picture, f'linear CKA, {comparison.estimator}')
        numbers.write_text(to_json(comparison))
