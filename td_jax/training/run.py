"""One run from beginning to end: checks, teacher, training, result."""

import contextlib
import json

import ml_collections
import numpy as np
from etils import epath

from td_jax import config as config_lib
from td_jax import randomness
from td_jax.data import base as data
from td_jax.devices import platform, processes
from td_jax.errors import Diverged, UserError
from td_jax.files import workdir as workdir_lib
from td_jax.training import finished, loop, memory, preflight, teachers
from td_jax.training.programs import Programs


@randomness.same_everywhere()
def train(
    config: ml_collections.ConfigDict, workdir: epath.Path, prefix: str = '', programs: Programs | None = None
) -> dict:
    """Trains and evaluates the run of a config, or continues it.

    Args:
      config: every option of td_jax.configs.common.
      workdir: folder of the run; created if missing, continued if it holds the same run.
      prefix: of the optimizer's keys in messages, 'teacher.' for a teacher's own run.
      programs: the cache of earlier runs in this process, if any.

    Returns:
      The content of result.json.

    Raises:
      UserError: invalid input; the message says what to change.
    """
    config_lib.check(config)
    platform.start()
    result = processes.call_on_main(lambda: preflight.check_workdir(config, workdir))
    if result:
        return result
    programs = programs or Programs()
    with memory.oom_as_user_error():
        plan = preflight.check(config, workdir, programs)
    if plan.source.note and not prefix:
        processes.say(plan.source.note)
    if plan.source.unlabelled:
        counts = data.count(plan.source.train), plan.source.unlabelled.count
        processes.say(f'{plan.source.name}: {counts[0]:,} examples with labels and {counts[1]:,} without')
    with _lock_workdir(workdir) as renew:
        # Another process may have trained here in the meantime.
        result = processes.call_on_main(lambda: preflight.check_workdir(config, workdir, plan.record))
        if result:
            return result
        teacher = plan.teacher
        if plan.teacher_source and not teacher:
            train(config_lib.teacher_run(config), workdir / finished.TEACHER, 'teacher.', programs)
            with memory.oom_as_user_error():
                # Every process reads what all of them wrote; one may see another disk.
                teacher = processes.check_together(
                    lambda: teachers.load(config, workdir, plan.teacher_source, plan.mesh)
                )
        with memory.oom_as_user_error():
            teacher_info = teachers.describe(config, teacher, plan.source, plan.mesh)
            return loop.Loop(config, workdir, plan, teacher, teacher_info, prefix, renew).finish()


@contextlib.contextmanager
def _lock_workdir(workdir):
    """Locks a workdir for this run, and writes there why it diverged; both in process 0 alone.

    Yields:
      a function to call before each save
    """
    if not processes.is_main():
        yield lambda: None
        return
    with workdir_lib.lock(workdir) as renew:
        note = workdir / workdir_lib.DIVERGED
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        try:
            yield renew
        except Diverged as error:
            # The divergence is more important than a failure to write it down.
            with contextlib.suppress(UserError):
                workdir_lib.write(note, json.dumps({'reason': str(error)}, indent=2) + '\n')
            raise


def describe(result: dict) -> str:
    """Describes a result in one line."""
    spread = '' if result['stderr'] is None else f', standard error {result["stderr"]:.4f}'
    teacher = '' if result['teacher'] is None else f'; teacher {result["teacher"]:.4f}'
    if finished.PROBE in result:
        teacher += f'; probe {np.mean(result[finished.PROBE]):.4f}'
    seeds = f'{len(result["seeds"])} seed{"s" if len(result["seeds"]) > 1 else ""}'
    # Results of older versions have no groups. A single group is the whole.
    groups = result.get('groups', {})
    parts = [
        f'{name.replace("_", " ")} {np.mean(group["values"]):.4f} ({group["count"]} examples)'
        for name, group in groups.items()
    ]
    group_scores = f'; {", ".join(parts)}' if len(parts) > 1 else ''
    kept_step = result.get(finished.KEPT_STEP, result['steps'])
    steps = f'{result["steps"]} steps' + (
        f', kept is step {kept_step}' if kept_step != result['steps'] else ''
    )
    return (
        f'{result["method"]} on {result["dataset"]}: {result["split"]} {result["metric"]} '
        f'{result["mean"]:.4f}{spread} ({seeds}, {steps}{teacher}){group_scores}'
    )
