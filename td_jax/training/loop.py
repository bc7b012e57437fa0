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
from td_jax.data import base as data
from td_jax.devices import processes, sharding, small
from td_jax.errors import Diverged, Stopped, UserError
from td_jax.files import checkpoints, metric_log
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
    train_step,
)


class Loop:
    """One run between its first step and its result.

    Each process saves and restores its part of the state; all other files are the business of process 0.
    """

    def __init__(self, config, workdir, plan, teacher, teacher_facts, prefix):
        self.config, self.workdir, self.source = config, workdir, plan.source
        self.teacher_facts, self.prefix, self.mesh = teacher_facts, prefix, plan.mesh
        source, mesh = plan.source, plan.mesh
        student = assembly.build_model(config, config.model, source)
        step, values = plan.compiled
        self.dispatch = assembly.assemble(config, source, teacher, mesh, step)
        self.evaluate = evaluation.make_evaluation(student, source, config.eval_batch_size, mesh, values)
        self.metric, _, _, self.less_is_better = evaluation.METRICS[source.task]
        self.score_name = f'{config.dataset.split}_{self.metric}'
        self.keys = dispatch.seed_keys(config)
        self.folder = workdir / finished.CHECKPOINTS
        self.checkpoints = checkpoints.Checkpoints(self.folder)
        classes = (teacher if config.teacher.labels == 'auxiliary' and teacher else plan).source.label_names
        self.constant_terms = objectives.constant_terms(config, len(classes))
        self.is_saved = False  # whether there is a checkpoint
        self.sources, self.record = plan.sources, plan.record
        self.is_recorded = False  # whether the workdir says, or cannot say, what the run is trained on
        self.best = selection.NO_VALIDATION
        # With config.keep 'best', the parameters of that step: a copy, because those of a state are donated.
        self.best_params = None

    def finish(self) -> dict:
        """Trains the steps that are missing; -> the result, which is then on disk."""
        with self._opened_checkpoints():
            step, state = self._restore_or_init()
            self._describe_devices(state)
            for term in self.constant_terms:
                weight = f'{self.config.method}.weights.{term}'
                processes.say(f'{weight} has no effect: with two classes its term is constant')
            lines = self._logged_until(step) if processes.is_main() else []
            self.monitor = diagnostics.ProgressMonitor(
                self.config, self.source.name, lines, self.constant_terms
            )
            with self._opened_log(lines) as log:
                step, state, scores = self._train(step, state, log)
                # One that was validated before it was saved is not measured again.
                scores = scores or self._evaluate(step, state, log)
            self.checkpoints.wait()
            kept = self._kept(step, scores)
            if kept != step:
                scores = self.evaluate(self.best_params[train_step.STUDENT])
        result = self._result(step, kept, scores, state)
        # All wait for it: each of them reads the result of a teacher next.
        processes.from_main(lambda: self._write_outcome(scores, result))
        return result

    def _write_outcome(self, scores, result):
        """The result is last: a run that has one has its errors, too."""
        if scores.values is not None:
            finished.write_errors(self.workdir, scores.values, self.source.units, result)
        self._write(workdir_lib.RESULT, json.dumps(result, indent=2) + '\n')

    @contextlib.contextmanager
    def _opened_checkpoints(self):
        try:
            with contextlib.closing(self.checkpoints):
                yield
        except UserError:
            # Without a checkpoint there is nothing that another config must not continue.
            if processes.is_main() and not checkpoints.holds_any(self.folder):
                names = workdir_lib.CONFIG, workdir_lib.MADE_OF, workdir_lib.DATA, workdir_lib.DATA_ARRAYS
                for name in names:
                    (self.workdir / name).unlink(missing_ok=True)
            raise

    def _write(self, name, text):
        if processes.is_main():
            workdir_lib.write(self.workdir / name, text)

    def _opened_log(self, lines):
        if not processes.is_main():
            return contextlib.nullcontext()
        return metric_log.opened(self.workdir, lines)

    def _describe_devices(self, state):
        if self.mesh.devices.size == 1:
            return
        trees = {
            'teacher': self.dispatch.constants.teacher_params,
            **state.params,
            'optimizer': state.opt_state,
        }
        processes.say(sharding.summary(self.mesh, self.config, trees))

    def _restore_or_init(self):
        """-> (step, TrainState), the newest readable one or the first."""
        state = self.dispatch.init(self.keys)
        if self.config.keep == 'best':
            self.copied = jax.jit(
                lambda params: jax.tree.map(jnp.copy, params),
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.params),
            )
            # Of no validation yet, but what a checkpoint before the first one holds.
            self.best_params = self.copied(state.params)
        restored = self.checkpoints.restore(self._saved(state), self._check_facts)
        # What the steps of an older version were trained on, nobody knows.
        self.is_saved = self.is_recorded = restored is not None
        if restored is None:
            # A checkpoint holds it, too.
            return 0, self.dispatch.add_probe(state)
        step, state, facts = restored
        if self.config.keep == 'best':
            self.best_params = state.pop(finished.BEST)
            state = train_step.TrainState(**state)
        if selection.applies(self.config):
            self.best = selection.Best(**facts[finished.BEST])
        trained = int(_on_host(state.step)[0])
        if trained != step:
            raise UserError(
                f'{self.folder / str(step)} is the checkpoint of step {trained} under another name; delete '
                'it, and the same command continues.'
            )
        processes.say(f'continues at step {step} of {self.config.num_steps}')
        return step, state

    def _saved(self, state):
        """What a checkpoint holds of a state."""
        if self.config.keep == 'last':
            return state
        return {**state._asdict(), finished.BEST: self.best_params}

    def _check_facts(self, facts):
        if facts['teacher'] != self.teacher_facts['fingerprint']:
            raise UserError(
                f'{self.workdir} was trained with another teacher than the one at hand now; '
                'choose another --workdir.'
            )

    def _logged_until(self, step):
        """The lines of metrics.jsonl that a run continued at `step` does not write again."""
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
        """Trains from `step` to the end; -> (last step, its TrainState, its Scores where they are known)."""
        config, scores = self.config, None
        started, compiled, pace = (time.monotonic(), step), None, _Pace(self.source)
        feed = self.dispatch.feed(self.keys, step)
        if step == 0 and (scalars := self._probed(state) | self._diagnosed(0, state, feed)) and log:
            # What messages are before anything is learned.
            log.write(0, scalars)
        while not self._is_over(step):
            before, began = step, time.monotonic()
            # Every interval ends at a multiple of its own length, wherever the run was continued.
            every = (config.log_every, config.save_every, *self._eval_intervals())
            end = min(config.num_steps, *(before + n - before % n for n in every))
            progress, stops = self.dispatch.begin(state), False
            while step < end and not stops:
                stop = min(end, step + pace.steps)
                progress, feed = self.dispatch.run(progress, feed, self.keys, step, stop)
                pace.measure(progress, stop - step)
                step = stop
                stops = processes.is_asked_to_stop()
            state = progress.state
            saves = stops or step % config.save_every == 0 or step == config.num_steps
            is_kept = saves or (selection.applies(config) and self._is_validated_at(step))
            # The parameters can overflow in the very step whose loss was the last finite one.
            if not _on_host(progress.finite) or (is_kept and not _is_finite(state.params)):
                raise Diverged(self._diverged('loss', int(_on_host(state.step)[0])))
            # In float64: the sum of large losses of several seeds is more than float32 holds.
            means = {
                name: np.asarray(total, np.float64) / (step - before)
                for name, total in _on_host(progress.sums).items()
            }
            now = time.monotonic()
            self._log(log, step, before, means, now - began, self._diagnosed(step, state, feed))
            scores = self._evaluate(step, state, log) if self._is_validated_at(step) else None
            if scores:
                self._select(step, state, scores)
            if saves or self._is_over(step):
                self._save(step, state, log)
            # The first dispatch compiles; the speed that is shown leaves it out where it can.
            compiled = compiled or (now, step)
            self._report(step, means, started, compiled)
            if stops and not self._is_over(step):
                self.checkpoints.wait()
                raise Stopped(
                    f'stopped at step {step} of {config.num_steps}, as asked; the same command continues.'
                )
        return step, state, scores

    def _select(self, step, state, scores):
        """Remembers a step's parameters if they are the best so far."""
        if not selection.applies(self.config):
            return
        self.best = self._after(step, scores)
        if self.config.keep == 'best' and self.best.step == step:
            self.best_params = self.copied(state.params)
        if selection.ends(self.best, self.config) and step < self.config.num_steps:
            processes.say(
                f'ends at step {step} of {self.config.num_steps}: no {self.score_name} was better than that '
                f'of step {self.best.step}, {self.best.score:.4f}, in {self.config.patience} validations'
            )

    def _after(self, step, scores):
        score, _ = evaluation.mean_and_stderr(scores.metric)
        return selection.update(self.best, step, score, self.less_is_better, self.config)

    def _kept(self, step, scores):
        """The step whose parameters are the run's outcome; the last one counts wherever it falls."""
        return self._after(step, scores).step if self.config.keep == 'best' else step

    def _save(self, step, state, log):
        """Starts a save, which goes on beside training."""
        self.is_saved = True
        # Not before: until something is saved, the folder is open to any config and any data.
        if processes.is_main() and not self.is_recorded:
            data_record.write(self.workdir, self.record, self.sources)
        self.is_recorded = True
        # With every save: a run that is continued may have become longer.
        self._write(workdir_lib.CONFIG, config_lib.to_json(self.config))
        if processes.is_main():
            provenance.write(self.config, self.workdir)
        # After the metrics: a run that continues here does not write them again.
        if log:
            log.flush()
        facts = {'teacher': self.teacher_facts['fingerprint']}
        if selection.applies(self.config):
            facts[finished.BEST] = self.best._asdict()
        self.checkpoints.save(step, self._saved(state), facts)

    def _diverged(self, what, step):
        weights = '' if self.config.method == 'supervised' else f' or {self.config.method}.weights'
        kept, place = 'nothing is saved', 'the same --workdir'
        if self.is_saved:
            kept, place = f'{self.workdir} is as it was before', 'another --workdir'
        return (
            f'the {what} of {self.config.method} on {self.source.name} is not finite at step {step}; {kept}. '
            f'Lower {self.prefix}optimizer.learning_rate{weights}, with {place}.'
        )

    def _eval_intervals(self):
        return (self.config.eval_every,) if self.config.dataset.split == 'validation' else ()

    def _is_validated_at(self, step):
        """The test split is read once, when training is over; so is the last validation.

        One that selects belongs to its step even if that is the last, for a run that becomes longer.
        """
        is_due = any(step % n == 0 for n in self._eval_intervals())
        return is_due and (step < self.config.num_steps or selection.applies(self.config))

    def _diagnosed(self, step, state, feed):
        """{name: mean over the seeds} of a state's diagnostics, {} where this step has none; may warn."""
        is_due = step % self.config.log_every == 0 or step == self.config.num_steps
        if not diagnostics.applies(self.config) or not is_due:
            return {}
        found = _on_host(self.dispatch.diagnose(state, feed, self.keys))
        scalars = {name: values.mean(dtype=np.float64) for name, values in found.items()}
        self.monitor.check(step, scalars)
        return scalars

    def _probed(self, state):
        """{name: mean over the seeds} of the accuracy of a run's probe, {} where it has none; says it."""
        if state.probe is None:
            return {}
        found = {'probe_train_accuracy': np.mean([fit.accuracy for fit in self.dispatch.fit_probe()])}
        # The test split is read once, at the end.
        if self.config.dataset.split == 'validation':
            found['probe_validation_accuracy'] = np.mean(self._probe_scores(state))
        scores = ', '.join(f'{name.split("_")[1]} {value:.4f}' for name, value in found.items())
        processes.say(f'{self.config.method} {self.source.name}: accuracy of the probe: {scores}')
        return found

    def _probe_scores(self, state):
        """The accuracy of each seed's probe on what is evaluated."""
        given = self.dispatch.represent(self.source.evaluation)
        params = _on_host(state.probe)
        return [
            probe.accuracy(jax.tree.map(lambda leaf, i=i: leaf[i], params), *given)
            for i in range(self.config.num_seeds)
        ]

    def _log(self, log, step, before, means, seconds, diagnosed):
        scalars = {f'train_{name}': value.mean() for name, value in means.items()}
        count = (step - before) * self.config.batch_size * self.config.num_seeds
        scalars['examples_per_second'] = count / seconds
        scalars |= diagnosed
        if log:
            log.write(step, scalars)

    def _report(self, step, means, started, compiled):
        config, now = self.config, time.monotonic()
        then, since = compiled if step > compiled[1] else started
        per_second = (step - since) / max(now - then, 1e-9)
        left = (config.num_steps - step) / per_second
        processes.say(
            f'{config.method} {self.source.name}: step {step}/{config.num_steps}  '
            f'loss {means["loss"].mean():.4f}  {per_second * config.num_seeds:.0f} seed-steps/s  '
            f'{left:.0f} s left'
        )

    def _evaluate(self, step, state, log):
        scores = self.evaluate(state.params[train_step.STUDENT])
        values = scores.metric
        if not np.isfinite(values).all():
            raise Diverged(self._diverged(self.metric, step))
        mean, _ = evaluation.mean_and_stderr(values)
        seeds = dispatch.seeds(self.config)
        by_seed = {f'{self.score_name}/seed_{seed}': v for seed, v in zip(seeds, values, strict=True)}
        if log:
            log.write(step, {self.score_name: mean, **by_seed})
        return scores

    def _result(self, step, kept, scores, state):
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
            'teacher': self.teacher_facts['score'],
            'teacher_fingerprint': self.teacher_facts['fingerprint'],
            'versions': {
                'jax': jax.__version__,
                'flax': flax.__version__,
                'td_jax': td_jax.__version__,
            },
            'groups': {} if scores.values is None else evaluation.score_groups(self.source, scores.values),
            **({} if state.probe is None else {finished.PROBE: self._probe_scores(state)}),
            **({finished.KEPT_STEP: kept} if config.keep == 'best' else {}),
            **({finished.ENDED_EARLY: True} if step < config.num_steps else {}),
        }


class _Pace:
    """How many steps a dispatch takes, so that a run that is asked to stop can do so soon.

    A stream is asked after every step. Steps on data on the device are dispatched by as many as fit in
    SECONDS, or, of several processes, which must not disagree, by a fixed number.
    """

    SECONDS = 2.0
    OF_SEVERAL_PROCESSES = 10

    def __init__(self, source):
        is_stream, is_alone = isinstance(source.train, data.TrainStream), jax.process_count() == 1
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


def _on_host(tree):
    """Host copies of arrays that every device has whole."""
    return jax.tree.map(np.asarray, tree)


@jax.jit
def _all_finite(leaves):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def _is_finite(tree):
    leaves = {True: [], False: []}
    for leaf in jax.tree.leaves(tree):
        leaves[small.is_small(leaf)].append(leaf)
    is_finite = all(np.isfinite(_on_host(leaf)).all() for leaf in leaves[True])
    return is_finite and (not leaves[False] or bool(_on_host(_all_finite(leaves[False]))))
