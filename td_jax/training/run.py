"""One run from beginning to end: what is refused, its teacher, its training, its result."""

import contextlib
import json

import ml_collections
import numpy as np
from etils import epath

from td_jax import config as config_lib
from td_jax.devices import platform, processes
from td_jax.errors import Diverged, UserError
from td_jax.files import workdir as workdir_lib
from td_jax.training import finished, loop, memory, preflight, teachers
from td_jax.training.programs import Programs


def train(
    config: ml_collections.ConfigDict, workdir: epath.Path, prefix: str = '', programs: Programs | None = None
) -> dict:
    """Trains what a config describes, from wherever its workdir stands, and evaluates it.

    Args:
      config: every knob of td_jax.configs.common.
      workdir: folder of the run; made if missing, continued if it holds the same run.
      prefix: what the optimizer's keys are under where a person set them.
      programs: those of the runs before in this process, where there are some that compile the same.

    Returns:
      The content of result.json.

    Raises:
      UserError: anything the user can mend.
    """
    config_lib.check(config)
    platform.start()
    result = processes.from_main(lambda: preflight.check_workdir(config, workdir))
    if result:
        return result
    programs = programs or Programs()
    with memory.told():
        plan = preflight.check(config, workdir, programs)
    if plan.source.said and not prefix:
        processes.say(plan.source.said)
    with _opened(workdir):
        # Another process may have trained here in the meantime.
        result = processes.from_main(lambda: preflight.check_workdir(config, workdir, plan.record))
        if result:
            return result
        teacher = plan.teacher
        if plan.teacher_source and not teacher:
            train(config_lib.teacher_run(config), workdir / finished.TEACHER, 'teacher.', programs)
            with memory.told():
                # Every process reads for itself what all of them wrote; one may see another disk.
                teacher = processes.together(
                    lambda: teachers.load(config, workdir, plan.teacher_source, plan.mesh)
                )
        with memory.told():
            facts = teachers.facts(config, teacher, plan.source, plan.mesh)
            return loop.Loop(config, workdir, plan, teacher, facts, prefix).finish()


@contextlib.contextmanager
def _opened(workdir):
    """Keeps a workdir for the processes of this run, and notes in it why it diverged; process 0 does both."""
    if not processes.is_main():
        yield
        return
    with workdir_lib.opened(workdir):
        note = workdir / workdir_lib.DIVERGED
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        try:
            yield
        except Diverged as error:
            # That it diverged says more than that there is no place to write it down.
            with contextlib.suppress(UserError):
                workdir_lib.write(note, json.dumps({'reason': str(error)}, indent=2) + '\n')
            raise


def describe(result: dict) -> str:
    """One line of a result for a person."""
    spread = '' if result['stderr'] is None else f', standard error {result["stderr"]:.4f}'
    teacher = '' if result['teacher'] is None else f'; teacher {result["teacher"]:.4f}'
    if finished.PROBE in result:
        teacher += f'; probe {np.mean(result[finished.PROBE]):.4f}'
    seeds = f'{len(result["seeds"])} seed{"s" if len(result["seeds"]) > 1 else ""}'
    # Of a run before there were groups, none. One alone is the whole.
    groups = result.get('groups', {})
    parts = [
        f'{name.replace("_", " ")} {np.mean(group["values"]):.4f} ({group["count"]} examples)'
        for name, group in groups.items()
    ]
    said = f'; {", ".join(parts)}' if len(parts) > 1 else ''
    kept = result.get(finished.KEPT_STEP, result['steps'])
    steps = f'{result["steps"]} steps' + (f', kept is step {kept}' if kept != result['steps'] else '')
    return (
        f'{result["method"]} on {result["dataset"]}: {result["split"]} {result["metric"]} '
        f'{result["mean"]:.4f}{spread} ({seeds}, {steps}{teacher}){said}'
    )
