"""Where the parts meet: build, restore, step, evaluate, save, log."""

import contextlib
import json
import os
import pathlib
import sys
import time
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import td_jax
from td_jax import (
    checkpoints,
    dispatch,
    evaluation,
    metric_log,
    objectives,
    optimizer,
    processes,
    sharding,
    train_step,
)
from td_jax import (
    config as config_lib,
)
from td_jax import (
    workdir as workdir_lib,
)
from td_jax.data import SOURCES, images
from td_jax.data import base as data
from td_jax.errors import Stopped, UserError
from td_jax.models import MODELS, base, pretrained

CHECKPOINTS, TEACHER = 'checkpoints', 'teacher'
# What every result.json has.
RESULT_KEYS = (
    'method',
    'dataset',
    'metric',
    'split',
    'values',
    'mean',
    'stderr',
    'steps',
    'seeds',
    'teacher',
    'versions',
)


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, prefix: str = '') -> dict:
    """Trains what a config describes, from wherever its workdir stands, and evaluates it.

    Args:
      config: every knob of configs.common.
      workdir: folder of the run; made if missing, continued if it holds the same run.
      prefix: what the optimizer's keys are under where a person set them.

    Returns:
      The content of result.json.

    Raises:
      UserError: anything the user can mend.
    """
    config_lib.check(config)
    finished = processes.from_main(lambda: _check_workdir(config, workdir))
    if finished:
        return finished
    # All that can be refused is refused here, before anything is written.
    mesh = sharding.make_mesh(config)
    source = _load_source(config, config.dataset)
    _check_task(config, source)
    build_model(config, config.model, source)
    teacher, teacher_source = None, None
    if reads_teacher(config):
        teacher_source = _check_teacher(config, workdir, source)
        teacher = _find_teacher(config, source, teacher_source)

    with _opened(workdir):
        # Another process may have trained here in the meantime.
        finished = processes.from_main(lambda: _check_workdir(config, workdir))
        if finished:
            return finished
        if processes.is_main() and not (workdir / workdir_lib.CONFIG).exists():
            workdir_lib.write(workdir / workdir_lib.CONFIG, config_lib.to_json(config))
        if teacher_source and not teacher:
            run(config_lib.teacher_run(config), workdir / TEACHER, 'teacher.')
            teacher = _load_teacher(config, workdir / TEACHER, teacher_source)
        facts = _teacher_facts(config, teacher, source, mesh)
        return _Run(config, workdir, source, teacher, facts, prefix, mesh).finish()


def describe(result: dict) -> str:
    """One line of a result for a person."""
    spread = '' if result['stderr'] is None else f' ± {result["stderr"]:.4f}'
    teacher = '' if result['teacher'] is None else f'; teacher {result["teacher"]:.4f}'
    seeds = f'{len(result["seeds"])} seed{"s" if len(result["seeds"]) > 1 else ""}'
    return (
        f'{result["method"]} on {result["dataset"]}: {result["split"]} {result["metric"]} '
        f'{result["mean"]:.4f}{spread} ({seeds}, {result["steps"]} steps{teacher})'
    )


# --- Before training -------------------------------------------------------------------------------


def _check_workdir(config, workdir):
    """Compares the config with the workdir's; -> the result if the run is finished, else None."""
    folder = workdir / CHECKPOINTS
    if folder.exists() and not os.access(folder, os.W_OK):
        raise UserError(f'{folder} cannot be written; make it so, or choose another --workdir.')
    stored = workdir_lib.read_json(workdir / workdir_lib.CONFIG)
    if stored is None:
        if folder.exists():
            raise UserError(
                f'{workdir} holds {CHECKPOINTS} but no {workdir_lib.CONFIG} to say of what; '
                'choose another --workdir.'
            )
        return None
    changed = config_lib.differences(config, stored)
    old_steps = stored.get('num_steps')
    if isinstance(old_steps, int):
        changed.pop('num_steps', None)
    if changed:
        raise UserError(
            f'{workdir} holds a run with another config: {config_lib.describe(changed)}. '
            'Choose another --workdir, or set these back.'
        )
    if old_steps > config.num_steps:
        raise UserError(
            f'{workdir} holds a run of {old_steps} steps, which is more than num_steps={config.num_steps}; '
            'choose another --workdir.'
        )
    result = _read_result(workdir)
    return result if result and result['steps'] == config.num_steps else None


def _read_result(workdir):
    """The content of a run's result.json, None where there is none."""
    path = workdir / workdir_lib.RESULT
    result = workdir_lib.read_json(path)
    missing = [key for key in RESULT_KEYS if key not in result] if result is not None else []
    if missing:
        raise UserError(
            f'{path} is damaged, {", ".join(missing)} missing; delete it, and the same command makes it.'
        )
    return result


@contextlib.contextmanager
def _under(prefix):
    """Puts what a part of the config is under in front of the keys that a refusal starts with."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{prefix}{error}') from error


def _load_source(config, task):
    """The data of `config.dataset` cut for a task."""
    return SOURCES[config.dataset.name](config.dataset, task)


def reads_teacher(config) -> bool:
    """Whether a run has a teacher: its method reads one, or its student starts from one."""
    return objectives.METHODS[config.method].reads_teacher or config.model.initial == 'teacher'


def _check_batch(config, source):
    count = data.count(source.train)
    if config.batch_size > count:
        raise UserError(
            f'batch_size is {config.batch_size}, but {source.name} has {count} training examples; '
            'lower batch_size.'
        )


def _check_task(config, source):
    """Refuses what does not fit the student's data."""
    _check_batch(config, source)
    compares = objectives.uses_logits(config) and source.task != 'classification'
    if compares and config.logits.distance == 'kl':
        raise UserError(
            f'logits.distance kl compares distributions over classes, but {source.name} is '
            f'{source.task}; set logits.distance to l2.'
        )
    if compares and config.teacher.labels == 'probe':
        raise UserError(
            f'teacher.labels probe learns classes, but {source.name} is {source.task}; '
            'set teacher.labels to shared or auxiliary.'
        )


def _check_teacher(config, workdir, student_source) -> data.Source:
    """Refuses a teacher that cannot be had; -> the data it is for."""
    expected = config_lib.teacher_run(config)
    if config.teacher.pretrained:
        source = _pretrained_source(config, student_source)
    else:
        with _under('teacher.'):
            source = _load_source(config, config.teacher.dataset)
            build_model(config, config.teacher.model, source)
    objectives.check_labels(config, student_source.label_names, source.label_names)
    if config.teacher.inputs == 'clean' and not isinstance(student_source.train, dict):
        raise UserError(
            f"teacher.inputs is clean, which keeps the teacher's states of all examples, but "
            f'{student_source.name} streams from disk; set teacher.inputs to varied.'
        )
    if config.teacher.checkpoint:
        _check_teacher_run(expected, workdir_lib.resolve(config.teacher.checkpoint))
    elif not config.teacher.pretrained:
        _check_batch(expected, source)
        processes.from_main(lambda: _check_workdir(expected, workdir / TEACHER))
    if config.model.initial == 'teacher':
        _check_start(config, student_source, source)
    return source


def _check_start(config, student_source, teacher_source):
    """Refuses a student that cannot start from its teacher."""
    given = _shapes(config, config.teacher.model, teacher_source)
    initial = _shapes(config, config.model, student_source)
    base.started_from(given, initial, copies_head=_same_labels(student_source, teacher_source))


def _same_labels(student_source, teacher_source):
    return tuple(student_source.label_names) == tuple(teacher_source.label_names)


def _shapes(config, model_config, source):
    """The shapes of a model's parameters."""
    model = build_model(config, model_config, source)
    inputs = source.inputs(source.tables, data.one_example(source), None)
    return jax.eval_shape(model.init, jax.random.key(0), inputs)


def _pretrained_source(config, student_source) -> data.Source:
    """The student's data as a public checkpoint labels it.

    A checkpoint does not name its labels: as many as the student's are taken to be the same.
    """
    checkpoint = pretrained.read(config.teacher.pretrained)
    pretrained.check_architecture(checkpoint, config.teacher.model, 'teacher.model')
    count = checkpoint.architecture.num_outputs
    if count == len(student_source.label_names):
        return student_source
    return student_source._replace(label_names=tuple(f'label {i} of the checkpoint' for i in range(count)))


def _find_teacher(config, student_source, source) -> dispatch.Teacher | None:
    """The teacher that is there already, or None where it has to be trained."""
    if config.teacher.pretrained:
        checkpoint = pretrained.read(config.teacher.pretrained)
        teacher = untrained_teacher(config, source)
        params, report = pretrained.fit(checkpoint, teacher.params)
        _say(f'{config.teacher.pretrained}: {pretrained.describe(report)}')
        return teacher._replace(params=params)
    if config.teacher.checkpoint:
        return _load_teacher(config, workdir_lib.resolve(config.teacher.checkpoint), source)
    return None


def _check_teacher_run(expected, folder):
    """Refuses a teacher of another architecture, data set or split than the config says."""
    stored, result = workdir_lib.read_json(folder / workdir_lib.CONFIG), _read_result(folder)
    if stored is None or result is None:
        raise UserError(
            f'teacher.checkpoint {folder} is not the workdir of a finished run: {workdir_lib.CONFIG} or '
            f'{workdir_lib.RESULT} is missing.'
        )
    if result['steps'] != stored.get('num_steps'):
        raise UserError(
            f'teacher.checkpoint {folder} is not finished: {result["steps"]} of '
            f'{stored.get("num_steps")} steps.'
        )
    parts = ('model.', 'dataset.', 'method')
    changed = {
        key: values
        for key, values in config_lib.differences(expected, stored).items()
        # What is kept for a gradient changes no parameter.
        if key.startswith(parts) and not key.endswith('.kept')
    }
    if changed:
        raise UserError(
            f'teacher.checkpoint {folder} does not fit teacher.model, teacher.dataset and dataset: '
            f'{config_lib.describe(changed)}.'
        )


def _load_teacher(config, folder, source) -> dispatch.Teacher:
    """The model that a finished supervised run left in a folder."""
    model = build_model(config, config.teacher.model, source)
    like = {train_step.STUDENT: _shapes(config, config.teacher.model, source)}
    with _under('the teacher: '):
        # A run with several seeds teaches with its first.
        params = _last_parameters(folder, like, seed_index=0)[train_step.STUDENT]
    return dispatch.Teacher(model, source, params)


def _last_parameters(folder, like, seed_index):
    """The parameters that one seed of a finished run ended with, as a tree of the shapes `like`."""
    found = []
    processes.from_main(lambda: found.append(_read_last_parameters(folder, like, seed_index)))
    return processes.arrays_from_main(found[0] if found else None, like)


def _read_last_parameters(folder, like, seed_index):
    restored, steps = None, _read_result(folder)['steps']
    # Opening a folder that is missing would make it.
    if (folder / CHECKPOINTS).is_dir():
        with contextlib.closing(checkpoints.Checkpoints(folder / CHECKPOINTS)) as saved:
            restored = saved.restore()
    if restored is None or restored[0] != steps:
        raise UserError(
            f'{folder} has no readable checkpoint of its last step, {steps}; delete its '
            f'{workdir_lib.RESULT} and train it again.'
        )
    prefix = 'params/'
    of_seed = {
        name.removeprefix(prefix): array[seed_index]
        for name, array in restored[1].items()
        if name.startswith(prefix)
    }
    try:
        return checkpoints.rebuilt(like, of_seed)
    except ValueError as error:
        raise UserError(f'the checkpoint in {folder} does not fit its model: {error}.') from error


class Finished(NamedTuple):
    """What a finished run left, of one of its seeds."""

    config: ml_collections.ConfigDict
    source: data.Source
    student: base.Model
    params: dict  # {STUDENT: tree, COMMUNICATION: tree}, as in train_step
    teacher: dispatch.Teacher | None


def load_finished(workdir: pathlib.Path, seed_index: int = 0) -> Finished:
    """Reads a finished run back.

    Args:
      workdir: of the run.
      seed_index: which of its seeds, counted from 0.

    Raises:
      UserError: no finished run is there, it has no such seed, or its teacher is gone.
    """
    stored, result = workdir_lib.read_json(workdir / workdir_lib.CONFIG), _read_result(workdir)
    if stored is None or result is None:
        raise UserError(
            f'{workdir} is not the workdir of a finished run: {workdir_lib.CONFIG} or {workdir_lib.RESULT} '
            'is missing.'
        )
    config = config_lib.from_json(stored)
    config_lib.check(config)
    if not 0 <= seed_index < config.num_seeds:
        raise UserError(f'{workdir} has {config.num_seeds} seeds; the index is from 0 to one less.')
    source = _load_source(config, config.dataset)
    teacher = None
    if reads_teacher(config):
        teacher_source = _check_teacher(config, workdir, source)
        teacher = _find_teacher(config, source, teacher_source)
        teacher = teacher or _load_teacher(config, workdir / TEACHER, teacher_source)
    run = assemble(config, source, teacher, sharding.make_mesh(config))
    shapes = jax.eval_shape(run.init, dispatch.seed_keys(config)).params
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
    params = _last_parameters(workdir, like, seed_index)
    student = build_model(config, config.model, source)
    return Finished(config, source, student, params, teacher)


def _teacher_facts(config, teacher, student_source, mesh):
    """What the results and checkpoints say of a teacher: its fingerprint and its score on the task.

    The score is None where it predicts other labels; both are None without a teacher.
    """
    if teacher is None:
        return {'fingerprint': None, 'score': None}
    score = None
    if _same_labels(student_source, teacher.source):
        evaluate = evaluation.build(teacher.model, teacher.source, config.eval_batch_size, mesh)
        stacked = jax.tree.map(lambda leaf: leaf[None], teacher.params)
        score = float(evaluate(stacked, student_source.evaluation)[0])
    return {'fingerprint': checkpoints.fingerprint(teacher.params), 'score': score}


def build_model(config, model_config, source) -> base.Model:
    """The model of `config.model` or `config.teacher.model` for some data."""
    build = MODELS[model_config.name]
    return build(model_config, source.vocabularies, len(source.label_names), config.compute_dtype)


def untrained_teacher(config, source) -> dispatch.Teacher:
    """A teacher with random parameters, which costs as much as a trained one."""
    model = build_model(config, config.teacher.model, source)
    inputs = source.inputs(source.tables, data.one_example(source), None)
    return dispatch.Teacher(model, source, model.init(jax.random.key(config.teacher.seed), inputs))


def assemble(config, source, teacher, mesh, build=dispatch.build):
    """The functions of a run from its parts.

    Args:
      config: of the run.
      source: the student's data.
      teacher: dispatch.Teacher, or None.
      mesh: the devices, by sharding.make_mesh.
      build: dispatch.build, or dispatch.abstract for what it would compile.
    """
    student = build_model(config, config.model, source)
    tx, learning_rate = optimizer.build(config.optimizer, config.num_steps)
    copies_head = teacher is not None and _same_labels(source, teacher.source)
    num_labels = len(source.label_names)
    step = train_step.build(student, tx, learning_rate, source.task, num_labels, config, copies_head)
    # A student that only starts from its teacher does not listen to it.
    heard = teacher if objectives.METHODS[config.method].reads_teacher else None
    given = teacher.params if config.model.initial == 'teacher' else None
    return build(step, source, heard, config, mesh, given)


def outline(config, mesh) -> dispatch.Abstract:
    """What a run of images would compile, without its data, its checkpoint or its devices.

    Raises:
      UserError: anything in the config that cannot work, or data that is not images.
    """
    config_lib.check(config)
    source = images.stand_in(config.dataset, config.dataset)
    teacher = None
    if reads_teacher(config):
        task = config.dataset if config.teacher.pretrained else config.teacher.dataset
        theirs = images.stand_in(config.dataset, task)
        if config.teacher.pretrained:
            names = tuple(map(str, range(pretrained.PUBLIC_LABELS)))
            theirs = theirs._replace(label_names=names)
        objectives.check_labels(config, source.label_names, theirs.label_names)
        shapes = _shapes(config, config.teacher.model, theirs)
        teacher = dispatch.Teacher(build_model(config, config.teacher.model, theirs), theirs, shapes)
    return assemble(config, source, teacher, mesh, dispatch.abstract)


# --- Training --------------------------------------------------------------------------------------


class _Run:
    """One run between its first step and its result. Files are the business of process 0 alone."""

    def __init__(self, config, workdir, source, teacher, teacher_facts, prefix, mesh):
        self.config, self.workdir, self.source = config, workdir, source
        self.teacher_facts, self.prefix, self.mesh = teacher_facts, prefix, mesh
        student = build_model(config, config.model, source)
        self.dispatch = assemble(config, source, teacher, mesh)
        self.evaluate = evaluation.build(student, source, config.eval_batch_size, mesh)
        self.metric = evaluation.METRICS[source.task][0]
        self.score_name = f'{config.dataset.split}_{self.metric}'
        self.keys = dispatch.seed_keys(config)
        self.checkpoints = checkpoints.Checkpoints(workdir / CHECKPOINTS) if processes.is_main() else None

    def finish(self) -> dict:
        """Trains the steps that are missing; -> the result, which is then on disk."""
        with contextlib.closing(self.checkpoints) if self.checkpoints else contextlib.nullcontext():
            step, state = self._restore_or_init()
            self._describe_devices(state)
            # A run that is continued may have become longer.
            self._write(workdir_lib.CONFIG, config_lib.to_json(self.config))
            with self._opened_log(step) as log:
                state = self._train(step, state, log)
                values = self._evaluate(self.config.num_steps, state, log)
            self._wait_for_saves()
        result = self._result(values)
        self._write(workdir_lib.RESULT, json.dumps(result, indent=2) + '\n')
        return result

    def _write(self, name, text):
        if processes.is_main():
            workdir_lib.write(self.workdir / name, text)

    def _opened_log(self, step):
        if not processes.is_main():
            return contextlib.nullcontext()
        return metric_log.opened(self.workdir, self._logged_until(step))

    def _describe_devices(self, state):
        if self.mesh.devices.size == 1:
            return
        trees = {
            'teacher': self.dispatch.constants.teacher_params,
            **state.params,
            'optimizer': state.opt_state,
        }
        _say(sharding.summary(self.mesh, self.config, trees))

    def _restore_or_init(self):
        """-> (step, TrainState), the newest readable one or the first."""
        state, arrays = self.dispatch.init(self.keys), None

        def read():
            nonlocal arrays
            restored = self.checkpoints.restore()
            if restored is None:
                return None
            step, found, facts = restored
            if facts['teacher'] != self.teacher_facts['fingerprint']:
                raise UserError(
                    f'{self.workdir} was trained with another teacher than the one at hand now; '
                    'choose another --workdir.'
                )
            try:
                arrays = checkpoints.rebuilt(state, found)
            except ValueError as error:
                raise UserError(
                    f'the checkpoint of step {step} in {self.workdir / CHECKPOINTS} does not fit this '
                    f'version of td_jax: {error}. Choose another --workdir.'
                ) from error
            return step

        step = processes.from_main(read)
        if step is None:
            return 0, state
        arrays = processes.arrays_from_main(arrays, state)
        _say(f'continues at step {step} of {self.config.num_steps}')
        return step, sharding.place(arrays, jax.tree.map(lambda leaf: leaf.sharding, state))

    def _logged_until(self, step):
        """The lines of metrics.jsonl that a run continued at `step` does not write again."""
        is_over = step == self.config.num_steps
        return [
            line
            for line in metric_log.read(self.workdir)
            if line['step'] < step or (line['step'] == step and not (is_over and self.score_name in line))
        ]

    def _train(self, step, state, log):
        """Trains from `step` to the end; -> the last TrainState."""
        config = self.config
        started, compiled, pace = (time.monotonic(), step), None, _Pace(self.source)
        feed = self.dispatch.feed(self.keys, step)
        while step < config.num_steps:
            before, began = step, time.monotonic()
            # Every interval ends at a multiple of its own length, wherever the run was continued.
            every = (config.log_every, config.save_every, *self._eval_intervals())
            end = min(config.num_steps, *(before + n - before % n for n in every))
            progress, stops = self.dispatch.started(state), False
            while step < end and not stops:
                stop = min(end, step + pace.steps)
                progress, feed = self.dispatch.run(progress, feed, self.keys, step, stop)
                pace.measure(progress, stop - step)
                step = stop
                stops = processes.is_asked_to_stop()
            state = progress.state
            saves = stops or step % config.save_every == 0 or step == config.num_steps
            # The parameters can overflow in the very step whose loss was the last finite one.
            if not _on_host(progress.finite) or (saves and not _is_finite(state.params)):
                raise UserError(self._diverged(int(_on_host(state.step)[0])))
            # In float64: the sum of large losses of several seeds is more than float32 holds.
            means = {
                name: np.asarray(total, np.float64) / (step - before)
                for name, total in _on_host(progress.sums).items()
            }
            now = time.monotonic()
            self._log(log, step, before, means, now - began)
            if self._is_validated_at(step):
                self._evaluate(step, state, log)
            if saves:
                self._save(step, state, log)
            # The first dispatch compiles; the speed that is shown leaves it out where it can.
            compiled = compiled or (now, step)
            self._report(step, means, started, compiled)
            if stops and step < config.num_steps:
                self._wait_for_saves()
                raise Stopped(
                    f'stopped at step {step} of {config.num_steps}, as asked; the same command continues.'
                )
        return state

    def _save(self, step, state, log):
        """Starts a save, which goes on beside training."""
        state = sharding.gathered(state)
        if self.checkpoints:
            # After the metrics: a run that continues here does not write them again.
            log.flush()
            self.checkpoints.save(step, state, {'teacher': self.teacher_facts['fingerprint']})

    def _wait_for_saves(self):
        if self.checkpoints:
            self.checkpoints.wait()

    def _diverged(self, step):
        weights = '' if self.config.method == 'supervised' else f' or {self.config.method}.weights'
        return (
            f'the loss of {self.config.method} on {self.source.name} is not finite at step {step}; '
            f'{self.workdir / CHECKPOINTS} is as it was before. Lower {self.prefix}optimizer.learning_rate'
            f'{weights}, with another --workdir.'
        )

    def _eval_intervals(self):
        return (self.config.eval_every,) if self.config.dataset.split == 'validation' else ()

    def _is_validated_at(self, step):
        """The test split is read once, when training is over; so is the last validation."""
        intervals = self._eval_intervals()
        return any(step % n == 0 for n in intervals) and step < self.config.num_steps

    def _log(self, log, step, before, means, seconds):
        scalars = {f'train_{name}': value.mean() for name, value in means.items()}
        count = (step - before) * self.config.batch_size * self.config.num_seeds
        scalars['examples_per_second'] = count / seconds
        if log:
            log.write(step, scalars)

    def _report(self, step, means, started, compiled):
        config, now = self.config, time.monotonic()
        then, since = compiled if step > compiled[1] else started
        per_second = (step - since) / max(now - then, 1e-9)
        left = (config.num_steps - step) / per_second
        _say(
            f'{config.method} {self.source.name}: step {step}/{config.num_steps}  '
            f'loss {means["loss"].mean():.4f}  {per_second * config.num_seeds:.0f} seed-steps/s  '
            f'{left:.0f} s left'
        )

    def _evaluate(self, step, state, log):
        values = self.evaluate(state.params[train_step.STUDENT])
        if not np.isfinite(values).all():
            raise UserError(self._diverged(step))
        mean, _ = evaluation.mean_and_stderr(values)
        seeds = self.config.seed + np.arange(self.config.num_seeds)
        by_seed = {f'{self.score_name}/seed_{seed}': v for seed, v in zip(seeds, values, strict=True)}
        if log:
            log.write(step, {self.score_name: mean, **by_seed})
        return values

    def _result(self, values):
        mean, stderr = evaluation.mean_and_stderr(values)
        config = self.config
        return {
            'method': config.method,
            'dataset': self.source.name,
            'metric': self.metric,
            'split': config.dataset.split,
            'values': [float(value) for value in values],
            'mean': mean,
            'stderr': stderr,
            'steps': config.num_steps,
            'seeds': [config.seed + i for i in range(config.num_seeds)],
            'teacher': self.teacher_facts['score'],
            'versions': {
                'jax': jax.__version__,
                'flax': flax.__version__,
                'td_jax': td_jax.__version__,
            },
        }


class _Pace:
    """How many steps a dispatch takes, so that a run that is asked to stop can do so soon.

    A stream is asked after every step. Steps on data on the device are dispatched by as many as fit in
    SECONDS, or, of several processes, which must not disagree, by a fixed number.
    """

    SECONDS = 2.0
    OF_SEVERAL_PROCESSES = 10

    def __init__(self, source):
        is_stream, is_alone = not isinstance(source.train, dict), jax.process_count() == 1
        self._is_measured = is_alone and not is_stream
        self.steps = 1 if is_alone or is_stream else self.OF_SEVERAL_PROCESSES
        self._compiles, self._began = True, time.monotonic()

    def measure(self, progress, steps):
        """Waits for a dispatch of some steps and learns from it."""
        if not self._is_measured:
            return
        jax.block_until_ready(progress)
        now = time.monotonic()
        if not self._compiles:
            fits = int(steps * self.SECONDS / max(now - self._began, 1e-9))
            self.steps = max(1, min(fits, 8 * self.steps))
        self._compiles, self._began = False, now


@contextlib.contextmanager
def _opened(workdir):
    """Keeps a workdir for the processes of this run; process 0 does it for all."""
    with workdir_lib.opened(workdir) if processes.is_main() else contextlib.nullcontext():
        yield


def _on_host(tree):
    """Host copies of arrays that every device has whole."""
    return jax.tree.map(np.asarray, tree)


@jax.jit
def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _is_finite(tree):
    return bool(_on_host(_all_finite(tree)))


def _say(line):
    if processes.is_main():
        print(line, file=sys.stderr, flush=True)
