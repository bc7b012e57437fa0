"""Chooses the knobs of each method on validation data; the test split is never read.

One set of knobs for a method and a setting (how ratings are split, or a data set of images), chosen on the
mean over some columns, such as a dense, a middle and a sparse genre: a mean averages noise away, and is what
a user could do, too. Every method has as many trials and the same rungs. What is chosen on other columns is
filed under their names; the teacher, whose task is the same in every column, is not.

A trial draws knobs by Optuna's tree-structured Parzen estimator and climbs RUNGS rungs. On each it is trained
anew on every column, with other seeds and, of ratings, on another slice of time; its score is the best mean
validation metric, over all runs so far, of a common step: the learning rate is constant, so that this step is
the number of steps that is chosen. By successive halving one of REDUCTION trials goes on to the next rung.

Where a module of configs/ draws other weights once the random trials are over, every method's next trial is
scratch's best of its random ones with the least weights: no method is chosen worse than scratch for the lack
of trials, and the estimator goes on from there.

Restartable: a trial is in Optuna's journal, a file for each method that another machine goes on from, and a
finished run is read from its folder. The knobs of a trial depend on the trials before it and on their number
alone, so an interrupted search ends where an uninterrupted one does.
"""

import collections
import contextlib
import json
from typing import NamedTuple

import optuna
from etils import epath
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from td_jax import config as config_lib
from td_jax.data import ratings
from td_jax.errors import Diverged, UserError, reason
from td_jax.files import metric_log, workdir
from td_jax.method import objectives
from td_jax.reproduction import cells, jobs, tables
from td_jax.training import evaluation, finished

optuna.logging.set_verbosity(optuna.logging.WARNING)

WEIGHT = FloatDistribution(0.1, 1000.0, log=True)


class Searched(NamedTuple):
    """How a module of configs/ is searched."""

    columns: dict[str, dict]  # what can be searched -> what it changes in the config
    mean_of: tuple[str, ...]  # the columns whose mean is the score, unless others are named
    points: int  # validations of a run
    weights: FloatDistribution = WEIGHT  # what weights are drawn from after the random trials


# The modules of configs/ whose runs are short enough to be searched.
CONFIGS = {
    'movielens': Searched(
        {genre: {'dataset.genre': genre} for genre in tables.GENRES}, ('Drama', 'Adventure', 'War'), 30
    ),
    'digits': Searched({'digits': {}}, ('digits',), 30),
    # A validation of images takes as long as many steps. Weights of states as large as those of the random
    # trials cost accuracy there (docs/cifar.md).
    'vit_tiny_cifar10': Searched(
        {str(count): {'dataset.examples_per_class': count} for count in tables.LABELLED},
        tuple(map(str, tables.LABELLED)),
        6,
        FloatDistribution(0.01, 10.0, log=True),
    ),
}
TEACHER = 'teacher'
SCRATCH = 'supervised'
RUNGS = 3
REDUCTION = 3
# Trials that are drawn at random before the estimator has something to go by.
RANDOM_TRIALS = 6

# What is drawn for every method; all that is drawn for one without a teacher.
COMMON = {
    'optimizer.learning_rate': FloatDistribution(1e-4, 3e-3, log=True),
    'optimizer.weight_decay': FloatDistribution(1e-2, 10.0, log=True),
    'model.dropout': CategoricalDistribution((0.0, 0.2, 0.4)),
}
ROUNDS = {'td.rounds': IntDistribution(0, 3)}


class Search(NamedTuple):
    """What is searched, for every method alike."""

    name: str  # of CONFIGS
    setting: dict  # what it changes in the config, such as {'dataset.split_by': 'user'}
    columns: tuple[str, ...]
    trials: int  # of each method
    seeds: int  # of a run
    steps: int  # of a run


def space(module: str, name: str, number: int = 0) -> dict:
    """{config key: distribution}, what trial `number` of TEACHER, a method or a variant of one draws from.

    A weight that a module of configs/ or a variant leaves at 0 stays there.
    """
    if name == TEACHER:
        return COMMON
    config = cells.base_config(module)
    config.update_from_flattened_dict(tables.variant(name))
    weight = WEIGHT if number < RANDOM_TRIALS else CONFIGS[module].weights
    weights = {f'{config.method}.weights.{term}': weight for term in objectives.taught(config)}
    return {**COMMON, **weights, **(ROUNDS if config.method == 'td' else {})}


def task_of(module: str) -> str:
    """What the models of a module of CONFIGS do, a name of evaluation.METRICS."""
    return 'regression' if cells.base_config(module).dataset.name == 'movielens' else 'classification'


def names_for(module: str) -> list[str]:
    """All that a module of CONFIGS can be searched for: TEACHER, methods of its task, variants of these."""
    methods = [name for name, method in objectives.METHODS.items() if task_of(module) in method.tasks]
    return [TEACHER, *methods, *tables.VARIANTS]


def search_of(name: str, split_by: str, columns, trials: int, seeds: int, steps: int) -> Search:
    """A Search; columns may be None, for the usual ones.

    The same columns in another order are the same search.

    Raises:
      UserError: a name that is not known, or a split of what is not split.
    """
    config_lib.check_choice('--config', name, CONFIGS)
    setting = {}
    if task_of(name) == 'regression':
        config_lib.check_choice('--split_by', split_by, ratings.SPLITS_BY)
        setting = {'dataset.split_by': split_by}
    elif split_by != 'time':
        raise UserError(f'--split_by is {split_by}, but {name} has no ratings to split; leave it out.')
    known = list(CONFIGS[name].columns)
    # `check` refuses what is not known.
    order = sorted(set(columns or CONFIGS[name].mean_of), key=lambda c: known.index(c) if c in known else -1)
    return Search(name, setting, tuple(order), trials, seeds, steps)


def check(search: Search, names, journals: epath.Path, target: epath.Path):
    """Refuses what cannot be searched.

    Raises:
      UserError: a name that is not known, a method of another task, journals in a bucket, a file that
        cannot be written, or trials that start from scratch's without those.
    """
    for name in names:
        config_lib.check_choice('--methods', name, names_for(search.name))
    for column in search.columns:
        config_lib.check_choice('--columns', column, CONFIGS[search.name].columns)
    _check_journals(journals)
    workdir.check_target('--output', target)
    starting = [name for name in names if _starts_from_scratch(search, name)]
    if starting and SCRATCH not in names:
        _start(search, starting[0], journals)


def prepared(search: Search, name: str, column: str, rung: int):
    """The config that the runs of a method or a variant, or of TEACHER, start from on one rung."""
    config = cells.base_config(search.name)
    searched = CONFIGS[search.name]
    config.update_from_flattened_dict(search.setting | searched.columns[column])
    config.dataset.split = 'validation'
    if config.dataset.name == 'movielens':
        config.dataset.validation_slice = rung
    config.num_steps, config.eval_every = search.steps, max(1, search.steps // searched.points)
    config.log_every = config.save_every = search.steps
    config.diagnostics = False
    config.num_seeds, config.seed = search.seeds, rung * search.seeds
    config.teacher.seed = rung
    if name == TEACHER:
        run = config_lib.teacher_run(config)
        run.num_steps = search.steps
        return run
    config.update_from_flattened_dict(tables.variant(name))
    return config


def knobs_of(search: Search, name: str, rung: int, values: dict, column: str | None = None):
    """The config of one run of a trial; in the first column, if none is named.

    Args:
      values: {config key: value}, what the trial drew, and the teacher's knobs.
    """
    config = prepared(search, name, column or search.columns[0], rung)
    config.update_from_flattened_dict(values)
    return config


def tune(search: Search, names, root: epath.Path, journals: epath.Path, target: epath.Path, processes: int):
    """Searches the knobs of some methods; what was chosen is written after the teacher and after all.

    Args:
      search: what is searched.
      names: methods or variants, TEACHER among them or not; it is searched first. `check` has seen them.
      root: folder of all runs.
      journals: local folder of Optuna's journals.
      target: JSON file that gets the choices; others in it stay.
      processes: methods that are searched at once.

    Yields:
      (name, what `search_one` returns), as they come

    Raises:
      UserError: what a run raises.
    """
    for name, folder in (('workdir', root), ('journals', journals)):
        workdir.make_folder(name, folder)
    first = [TEACHER] + [SCRATCH] * any(_starts_from_scratch(search, name) for name in names)
    rest = [name for name in names if name not in first]
    for part in (*([name] for name in first if name in names), rest):
        choices = workdir.read_json(target) or {}
        taught_by = {} if TEACHER in part else choices.get(_filed_under(search, TEACHER), {}).get(TEACHER, {})
        needed = [knobs_of(search, name, rung, taught_by) for name in part for rung in range(RUNGS)]
        cells.train_teachers(root, needed, processes)
        tasks = [(search, name, taught_by, str(root), str(journals)) for name in part]
        for name, record in zip(part, jobs.each(_task, tasks, processes, root, 'searches'), strict=True):
            prefix = 'teacher.' if name == TEACHER else ''
            values = {f'{prefix}{key}': value for key, value in record['chosen'].items()}
            choices.setdefault(_filed_under(search, name), {})[name] = values
            workdir.write(target, json.dumps(choices, indent=2, sort_keys=True) + '\n')
            yield name, record


def _task(task):
    search, name, taught_by, root, journals = task
    return search_one(search, name, taught_by, epath.Path(root), epath.Path(journals))


def search_one(search: Search, name: str, taught_by: dict, root: epath.Path, journals: epath.Path) -> dict:
    """Runs the trials of one method that are missing.

    Args:
      search: what is searched.
      name: of a method or a variant, or TEACHER.
      taught_by: {config key: value}, the teacher's knobs.
      root: folder of all runs.
      journals: folder of the journals.

    Returns:
      {'chosen': the best trial's knobs with num_steps, 'score': its validation metric, 'scores': those of all
      trials that reached the last rung}

    Raises:
      UserError: a journal that is damaged or of another search, no trial that did not diverge, or what a run
        raises.
    """
    metric, _, _, less_is_better = evaluation.METRICS[task_of(search.name)]
    if name == TEACHER:
        search = search._replace(columns=CONFIGS[search.name].mean_of)
    study = _opened(_journal(search, name, journals), search, taught_by, less_is_better)
    columns = search.columns if name != TEACHER else search.columns[:1]
    while (number := len(_over(study))) < search.trials:
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=RANDOM_TRIALS)
        if number == RANDOM_TRIALS and _starts_from_scratch(search, name):
            # It is there already where it was interrupted.
            study.enqueue_trial(_start(search, name, journals), skip_if_exists=True)
        trial = study.ask(space(search.name, name, number))
        curves = collections.defaultdict(list)
        for rung in range(RUNGS):
            for column in columns:
                run = knobs_of(search, name, rung, {**taught_by, **trial.params}, column)
                for step, value in _curve(root, run, f'validation_{metric}').items():
                    curves[step].append(value)
            # A run that diverged has no more steps, and no step that they all have is none to choose.
            whole = {s: sum(v) / len(v) for s, v in curves.items() if len(v) == (rung + 1) * len(columns)}
            if not whole:
                study.tell(trial, state=TrialState.PRUNED)
                break
            step, score = best(whole, less_is_better)
            trial.set_user_attr('num_steps', step)
            trial.report(score, REDUCTION**rung)
            if rung < RUNGS - 1 and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, score)
    done = study.get_trials(states=[TrialState.COMPLETE])
    if not done:
        raise UserError(f'every trial of {name} diverged; raise --trials, now {search.trials}.')
    chosen = study.best_trial
    return {
        'chosen': {**chosen.params, 'num_steps': chosen.user_attrs['num_steps']},
        'score': chosen.value,
        'scores': [trial.value for trial in done],
    }


def _starts_from_scratch(search, name):
    """Whether the trial after the random ones of a method has what was chosen for scratch."""
    return (
        search.trials > RANDOM_TRIALS
        and CONFIGS[search.name].weights != WEIGHT
        and name not in (TEACHER, SCRATCH)
    )


def _start(search, name, journals):
    """The knobs of scratch's best random trial with the least weights; what else there is, is drawn."""
    path = _journal(search, SCRATCH, journals)
    study = _loaded(path) if path.exists() else None
    random = _over(study)[:RANDOM_TRIALS] if study else []
    if len(random) < RANDOM_TRIALS:
        raise UserError(
            f'trial {RANDOM_TRIALS + 1} of {name} starts from the best of {RANDOM_TRIALS} of {SCRATCH}, '
            f'which {path} does not have; name {SCRATCH} in --methods, too.'
        )
    done = _best_first(study, random)
    if not done:
        raise UserError(f'every trial of {SCRATCH} in {path} diverged, and {name} starts from the best.')
    weights = space(search.name, name).keys() - COMMON.keys() - ROUNDS.keys()
    return {**done[0].params, **dict.fromkeys(sorted(weights), CONFIGS[search.name].weights.low)}


def trials_in(path: epath.Path) -> list[dict]:
    """The knobs, num_steps among them, of the trials in a journal that reached the last rung, best first.

    Raises:
      UserError: there is no such journal, or it is damaged.
    """
    _check_journals(path.parent)
    if not path.exists():
        raise UserError(f'{path} is not there; td_jax.tune makes it.')
    study = _loaded(path)
    with _undamaged(path):
        done = _best_first(study, _over(study))
        return [{**trial.params, 'num_steps': trial.user_attrs['num_steps']} for trial in done]


def _best_first(study, trials):
    """Those of some trials that reached the last rung, best first."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(done, key=lambda trial: (sign * trial.value, trial.number))


def _journal(search, name, journals):
    """Where the trials of a method are."""
    return journals / f'{_filed_under(search, name)}-{name}.journal'


def _filed_under(search, name):
    """The setting of a method's choice, with the columns that chose it unless they are the usual ones."""
    usual = name == TEACHER or search.columns == CONFIGS[search.name].mean_of
    return cells.setting(prepared(search, name, search.columns[0], 0), () if usual else search.columns)


def _loaded(path):
    """The study in a journal that is there."""
    with _undamaged(path):
        return optuna.load_study(study_name=path.stem, storage=JournalStorage(JournalFileBackend(str(path))))


def _check_journals(folder):
    if workdir.is_in_bucket(folder):
        raise UserError(f'--journals {folder} is in a bucket, which no journal can grow in; name a folder.')


@contextlib.contextmanager
def _undamaged(path):
    """Makes one line of whatever does not read back as what was written; Optuna asserts some of it."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be read ({reason(error)}); choose other --journals.') from error
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f'{path} is damaged; delete it, and its search begins anew.') from error


def best(curve: dict, less_is_better: bool):
    """(step, value) of the best value of a curve {step: value}, the first of several."""
    return min(curve.items(), key=lambda point: (point[1] if less_is_better else -point[1], point[0]))


def _over(study):
    """The trials that are over."""
    return study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])


def _opened(path, search, taught_by, less_is_better):
    """The study in a journal; a trial that was interrupted is tried again."""
    with _undamaged(path):
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=path.stem,
            direction='minimize' if less_is_better else 'maximize',
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
            load_if_exists=True,
        )
    # Not the trials, of which there may be more later.
    made_by = json.loads(json.dumps({**search._replace(trials=None)._asdict(), 'taught_by': taught_by}))
    there = study.user_attrs.get('search', made_by)
    for key, value in made_by.items():
        if there[key] != value:
            raise UserError(
                f'{path} is of another search: its {key} is {there[key]}, here {value}; choose other '
                '--journals.'
            )
    study.set_user_attr('search', made_by)
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _curve(root, config, name) -> dict:
    """{step: value} of the metric in a run's log, run now if it is missing; what diverged has none."""
    folder = cells.run_folder(root, config)
    try:
        cells.run_one(root, config)
    except Diverged:
        return {}
    # Hundreds of runs would fill the disk; what was measured stays.
    saved = folder / finished.CHECKPOINTS
    if saved.exists():
        saved.rmtree()
    return {line['step']: line[name] for line in metric_log.read(folder) if name in line}
