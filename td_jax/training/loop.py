"""The loop of a run: restore, step, evaluate, log, save."""

import contextlib
import json
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np

import td_jax
from td_jax import config as config_lib
from td_jax import quantities
from td_jax.config import identity
from td_jax.data import base as data
from td_jax.devices import processes, sharding, small_arrays
from td_jax.errors import Diverged, InUse, Stopped, UserError
from td_jax.files import checkpoints, metric_log, trackers
from td_jax.files import workdir as workdir_lib
from td_jax.method import objectives
from td_jax.training import (
    assembly,
    data_record,
    diagnostics,
    dispatch,
    evaluation,
    finished,
    probe,
    provenance,
    selection,
    teacher_outputs,
    train_step,
)


class Loop:
    """One run from its first step to its result.

    Each process saves and restores its part of the state; process 0 alone writes all other files.
    """

    def __init__(self, config, workdir, plan, teacher, teacher_info, prefix, renew):
        self.config, self.workdir, self.source = config, workdir, plan.source
        self.teacher_info, self.prefix, self.mesh = teacher_info, prefix, plan.mesh
        # Makes sure that no other process has taken over the workdir.
        self.renew = renew
        source, mesh = plan.source, plan.mesh
        student = assembly.build_model(config, config.model, source)
        step, values = plan.compiled
        keep = teacher_outputs.make_keep(config, teacher, teacher_info['fingerprint'])
        self.dispatch = assembly.assemble(config, source, teacher, mesh, step, keep)
        self.evaluate = evaluation.make_evaluation(student, source, config.eval_batch_size, mesh, values)
        self.metric, _, _, self.less_is_better = evaluation.METRICS[source.task]
        self.score_name = f'{config.dataset.split}_{self.metric}'
        self.keys = dispatch.seed_keys(config)
        self.folder = workdir / finished.CHECKPOINTS
        self.checkpoints = checkpoints.Checkpoints(self.folder)
        classes = (teacher if config.teacher.labels == 'auxiliary' and teacher else plan).source.label_names
        self.constant_terms = objectives.constant_terms(config, len(classes))
        self.is_saved = False  # whether a checkpoint exists
        self.sources, self.record = plan.sources, plan.record
        self.is_recorded = False  # whether the record of the data is written, or cannot be
        self.best = selection.NO_VALIDATION
        # With config.keep 'best', a copy of that step's parameters; those of the state are donated.
        self.best_params = None

    def finish(self) -> dict:
        """Trains the remaining steps, writes the result and returns it."""
        with self._open_checkpoints():
            step, state = self._restore_or_init()
            self._describe_devices(state)
            for term in self.constant_terms:
                weight = f'{self.config.method}.weights.{term}'
                processes.say(f'{weight} has no effect: with two classes its term is constant')
            lines = self._read_log_until(step) if processes.is_main() else []
            self.monitor = diagnostics.ProgressMonitor(
                self.config, self.source.name, lines, self.constant_terms
            )
            with self._open_log(lines) as log:
                step, state, scores = self._train(step, state, log)
                # The last step may have been validated already.
                scores = scores or self._evaluate(step, state, log)
            self.checkpoints.wait()
            kept_step = self._choose_step(step, scores)
            if kept_step != step:
                scores = self.evaluate(self.best_params[train_step.STUDENT])
        result = self._make_result(step, kept_step, scores, state)
        # All processes wait, because each of them reads the result of a teacher next.
        processes.call_on_main(lambda: self._write_outcome(scores, result))
        return result

    def _write_outcome(self, scores, result):
        """Writes the errors and then the result, so that a run with a result has its errors, too."""
        self.renew()
        if scores.values is not None:
            finished.write_errors(self.workdir, scores.values, self.source.units, result)
        self._write(workdir_lib.RESULT, json.dumps(result, indent=2) + '\n')

    @contextlib.contextmanager
    def _open_checkpoints(self):
        try:
            with contextlib.closing(self.checkpoints):
                yield
        except InUse:
            # The files are those of another process now.
            raise
        except UserError:
            # Without a checkpoint, the folder stays open to any other config.
            if processes.is_main() and not checkpoints.holds_any(self.folder):
                names = workdir_lib.CONFIG, workdir_lib.PROVENANCE, workdir_lib.DATA, workdir_lib.DATA_ARRAYS
                for name in (*names, trackers.FILE):
                    (self.workdir / name).unlink(missing_ok=True)
            raise

    def _write(self, name, text):
        if processes.is_main():
            workdir_lib.write(self.workdir / name, text)

    def _open_log(self, lines):
        if not processes.is_main():
            return contextlib.nullcontext()
        hparams = identity.identity(self.config)
        return metric_log.open_log(self.workdir, lines, self.config.tracking, hparams)

    def _describe_devices(self, state):
        if self.mesh.devices.size == 1:
            return
        trees = {
            'teacher': self.dispatch.constants.teacher_params,
            **state.params,
            'optimizer': state.opt_state,
        }
        processes.say(sharding.describe_placement(self.mesh, self.config, trees))

    def _restore_or_init(self):
        """Restores the newest readable checkpoint, or initialises; -> (step, TrainState)."""
        state = self.dispatch.init(self.keys)
        if self.config.keep == 'best':
            self.copy_params = jax.jit(
                lambda params: jax.tree.map(jnp.copy, params),
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.params),
            )
            # A placeholder for checkpoints before the first validation.
            self.best_params = self.copy_params(state.params)
        restored = self.checkpoints.restore(self._make_checkpoint(state), self._check_teacher)
        # A run of an older version has no record of its data, and gets none.
        self.is_saved = self.is_recorded = restored is not None
        if restored is None:
            # A restored state already has its probe.
            return 0, self.dispatch.add_probe(state)
        step, state, metadata = restored
        if self.config.keep == 'best':
            self.best_params = state.pop(finished.BEST)
            state = train_step.TrainState(**state)
        if selection.applies(self.config):
            self.best = selection.Best(**metadata[finished.BEST])
        saved_step = int(_copy_to_host(state.step)[0])
        if saved_step != step:
            raise UserError(
                f'{self.folder / str(step)} is the checkpoint of step {saved_step} under another name; '
                'delete it, and the same command continues.'
            )
        processes.say(f'continues at step {step} of {self.config.num_steps}')
        return step, state

    def _make_checkpoint(self, state):
        """The content of a checkpoint for a state."""
        if self.config.keep == 'last':
            return state
        return {**state._asdict(), finished.BEST: self.best_params}

    def _check_teacher(self, metadata):
        if metadata['teacher'] != self.teacher_info['fingerprint']:
            raise UserError(
                f'{self.workdir} was trained with another teacher than the one at hand now; '
                'choose another --workdir.'
            )

    def _read_log_until(self, step):
        """Reads the lines of metrics.jsonl that a run continued at `step` keeps."""
        if step == 0:
            return []
        is_over = self._is_over(step)
        return [
            line
            for line in metric_log.read(self.workdir)
            if line['step'] < step or (line['step'] == step and not (is_over and self.score_name in line))
        ]

    def _is_over(self, step):
        return step >= self.config.num_steps or selection.ends(self.best, self.config)

    def _train(self, step, state, log):
        """Trains from `step` to the end; -> (last step, TrainState, its Scores or None)."""
        config, scores = self.config, None
        start, after_compilation, pace = (time.monotonic(), step), None, _Pace(self.source)
        feed = self.dispatch.feed(self.keys, step)
        if step == 0:
            state = self.dispatch.add_scales(state, feed, self.keys)
        if step == 0 and (scalars := self._score_probe(state) | self._diagnose(0, state, feed)) and log:
            # The messages of untrained encoders, for comparison.
            log.write(0, scalars)
        while not self._is_over(step):
            previous_step, began_at = step, time.monotonic()
            # Every interval ends at a multiple of its length, wherever the run was continued.
            every = (config.log_every, config.save_every, *self._list_eval_intervals())
            end = min(config.num_steps, *(previous_step + n - previous_step % n for n in every))
            progress, stops = self.dispatch.begin(state), False
            while step < end and not stops:
                stop = min(end, step + pace.steps)
                progress, feed = self.dispatch.run(progress, feed, self.keys, step, stop)
                pace.measure(progress, stop - step)
                step = stop
                stops = processes.is_asked_to_stop()
            state = progress.state
            saves = stops or step % config.save_every == 0 or step == config.num_steps
            checks_params = saves or (selection.applies(config) and self._is_validated_at(step))
            # The parameters may overflow in a step whose loss is still finite.
            if not _copy_to_host(progress.finite) or (checks_params and not _is_finite(state.params)):
                raise Diverged(self._describe_divergence('loss', int(_copy_to_host(state.step)[0])))
            # In float64, because a sum of large losses may overflow float32.
            means = {
                name: np.asarray(total, np.float64) / (step - previous_step)
                for name, total in _copy_to_host(progress.sums).items()
            }
            now = time.monotonic()
            self._log(log, step, previous_step, means, now - began_at, self._diagnose(step, state, feed))
            scores = self._evaluate(step, state, log) if self._is_validated_at(step) else None
            if scores:
                self._select(step, state, scores)
            if saves or self._is_over(step):
                self._save(step, state, log)
            # The first dispatch compiles, and is left out of the reported speed where possible.
            after_compilation = after_compilation or (now, step)
            self._report(step, means, start, after_compilation)
            if stops and not self._is_over(step):
                self.checkpoints.wait()
                raise Stopped(
                    f'stopped at step {step} of {config.num_steps}, as asked; the same command continues.'
                )
        return step, state, scores

    def _select(self, step, state, scores):
        """Keeps a step's parameters if they are the best so far."""
        if not selection.applies(self.config):
            return
        self.best = self._update_best(step, scores)
        if self.config.keep == 'best' and self.best.step == step:
            self.best_params = self.copy_params(state.params)
        if selection.ends(self.best, self.config) and step < self.config.num_steps:
            processes.say(
                f'ends at step {step} of {self.config.num_steps}: no {self.score_name} was better than that '
                f'of step {self.best.step}, {self.best.score:.4f}, in {self.config.patience} validations'
            )

    def _update_best(self, step, scores):
        score, _ = evaluation.mean_and_stderr(scores.metric)
        return selection.update(
            self.best, step, score, less_is_better=self.less_is_better, config=self.config
        )

    def _choose_step(self, step, scores):
        """The step whose parameters the run keeps; the last step always counts as validated."""
        return self._update_best(step, scores).step if self.config.keep == 'best' else step

    def _save(self, step, state, log):
        """Starts a save, which runs in the background."""
        processes.call_on_main(self.renew)
        self.is_saved = True
        # Not earlier: until something is saved, the folder stays open to any config and data.
        if processes.is_main() and not self.is_recorded:
            data_record.write(self.workdir, self.record, self.sources)
        self.is_recorded = True
        # With every save, because num_steps may have been raised.
        self._write(workdir_lib.CONFIG, config_lib.to_json(self.config))
        if processes.is_main():
            provenance.write(self.config, self.workdir)
        # Metrics first: a run that continues from this checkpoint does not write them again.
        if log:
            log.flush()
        metadata = {'teacher': self.teacher_info['fingerprint']}
        if selection.applies(self.config):
            metadata[finished.BEST] = self.best._asdict()
        self.checkpoints.save(step, self._make_checkpoint(state), metadata)

    def _describe_divergence(self, what, step):
        weights = '' if self.config.method == 'supervised' else f' or {self.config.method}.weights'
        saved, place = 'nothing is saved', 'the same --workdir'
        if self.is_saved:
            saved, place = f'{self.workdir} is as it was before', 'another --workdir'
        return (
            f'the {what} of {self.config.method} on {self.source.name} is not finite at step {step}; '
            f'{saved}. Lower {self.prefix}optimizer.learning_rate{weights}, with {place}.'
        )

    def _list_eval_intervals(self):
        return (self.config.eval_every,) if self.config.dataset.split == 'validation' else ()

    def _is_validated_at(self, step):
        """Whether a step is validated during training. The test split is read once, after training.

        So is the validation slice at the last step, unless validation selects: then a run whose num_steps is
        raised later needs that score, too.
        """
        is_due = any(step % n == 0 for n in self._list_eval_intervals())
        return is_due and (step < self.config.num_steps or selection.applies(self.config))

    def _diagnose(self, step, state, feed):
        """Computes a state's diagnostics and may warn; {name: mean over the seeds}, {} if none are due."""
        is_due = step % self.config.log_every == 0 or step == self.config.num_steps
        if not diagnostics.applies(self.config) or not is_due:
            return {}
        diagnostics_by_seed = _copy_to_host(self.dispatch.diagnose(state, feed, self.keys))
        scalars = {name: values.mean(dtype=np.float64) for name, values in diagnostics_by_seed.items()}
        self.monitor.check(step, scalars)
        return scalars

    def _score_probe(self, state):
        """Reports the accuracy of the probe; {name: mean over the seeds}, {} for a run without one."""
        if state.probe is None:
            return {}
        accuracies = {'probe_train_accuracy': np.mean([fit.accuracy for fit in self.dispatch.fit_probe()])}
        # The test split is read once, at the end.
        if self.config.dataset.split == 'validation':
            accuracies['probe_validation_accuracy'] = np.mean(self._probe_scores(state))
        scores = ', '.join(f'{name.split("_")[1]} {value:.4f}' for name, value in accuracies.items())
        processes.say(f'{self.config.method} {self.source.name}: accuracy of the probe: {scores}')
        return accuracies

    def _probe_scores(self, state):
        """The accuracy of each seed's probe on the evaluation examples."""
        examples = self.dispatch.represent(self.source.evaluation)
        params = _copy_to_host(state.probe)
        return [
            probe.accuracy(jax.tree.map(lambda leaf, i=i: leaf[i], params), *examples)
            for i in range(self.config.num_seeds)
        ]

    def _log(self, log, step, previous_step, means, seconds, diagnostic_scalars):
        scalars = {f'train_{name}': value.mean() for name, value in means.items()}
        batch_size = self.config.batch_size + dispatch.unlabelled_batch_size(self.source, self.config)
        count = (step - previous_step) * batch_size * self.config.num_seeds
        scalars['examples_per_second'] = count / seconds
        scalars |= diagnostic_scalars
        if log:
            log.write(step, scalars)

    def _report(self, step, means, start, after_compilation):
        config, now = self.config, time.monotonic()
        since_time, since_step = after_compilation if step > after_compilation[1] else start
        per_second = (step - since_step) / max(now - since_time, 1e-9)
        rate = quantities.describe_rate(per_second * config.num_seeds)
        left = quantities.describe_duration((config.num_steps - step) / per_second)
        processes.say(
            f'{config.method} {self.source.name}: step {step}/{config.num_steps}  '
            f'loss {means["loss"].mean():.4f}  {rate} steps/s (all seeds)  {left} left'
        )

    def _evaluate(self, step, state, log):
        scores = self.evaluate(state.params[train_step.STUDENT])
        values = scores.metric
        if not np.isfinite(values).all():
            raise Diverged(self._describe_divergence(self.metric, step))
        mean, _ = evaluation.mean_and_stderr(values)
        seeds = dispatch.seeds(self.config)
        by_seed = {f'{self.score_name}/seed_{seed}': v for seed, v in zip(seeds, values, strict=True)}
        if log:
            log.write(step, {self.score_name: mean, **by_seed})
        return scores

    def _make_result(self, step, kept_step, scores, state):
        values = scores.metric
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
            'steps': step,
            'seeds': dispatch.seeds(config),
            'teacher': self.teacher_info['score'],
            'teacher_fingerprint': self.teacher_info['fingerprint'],
            'versions': {
                'jax': jax.__version__,
                'flax': flax.__version__,
                'td_jax': td_jax.__version__,
            },
            'groups': {} if scores.values is None else evaluation.score_groups(self.source, scores.values),
            **({} if state.probe is None else {finished.PROBE: self._probe_scores(state)}),
            **({finished.KEPT_STEP: kept_step} if config.keep == 'best' else {}),
            **({finished.ENDED_EARLY: True} if step < config.num_steps else {}),
        }


class _Pace:
    """The number of steps per dispatch, small enough that a run can stop soon after it is asked to.

    On a stream it is 1. On data on the device it is the number that fits in SECONDS, or a fixed number for
    several processes, which must agree.
    """

    SECONDS = 2.0
    OF_SEVERAL_PROCESSES = 10

    def __init__(self, source):
        is_stream, is_alone = isinstance(source.train, data.TrainStream), jax.process_count() == 1
        self._is_measured = is_alone and not is_stream
        self.steps = 1 if is_alone or is_stream else self.OF_SEVERAL_PROCESSES
        self._compiles, self._began = True, time.monotonic()

    def measure(self, progress, steps):
        """Waits for a dispatch of some steps and adapts to its duration."""
        if not self._is_measured:
            return
        jax.block_until_ready(progress)
        now = time.monotonic()
        if not self._compiles:
            fits = int(steps * self.SECONDS / max(now - self._began, 1e-9))
            self.steps = max(1, min(fits, 8 * self.steps))
        self._compiles, self._began = False, now


def _copy_to_host(tree):
    """Copies replicated arrays to the host."""
    return jax.tree.map(np.asarray, tree)


@jax.jit
def _all_finite(leaves):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def _is_finite(tree):
    leaves = {True: [], False: []}
    for leaf in jax.tree.leaves(tree):
        leaves[small_arrays.is_small(leaf)].append(leaf)
    is_finite = all(np.isfinite(_copy_to_host(leaf)).all() for leaf in leaves[True])
    return is_finite and (not leaves[False] or bool(_copy_to_host(_all_finite(leaves[False]))))
