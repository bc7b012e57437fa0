"""Experiment trackers, which get the metrics of a run in addition to its files: Weights & Biases and MLflow.

They are off unless config.tracking names a project. A run does not depend on them: a tracker that fails is
left out from there on, with a warning.
"""

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from etils import epath

from td_jax.errors import UserError, reason
from td_jax.files import workdir as workdir_lib

# The runs of trackers that belong to a workdir: {name of the tracker: {"project": ..., "run": its id}}.
FILE = 'tracking.json'
# Environment variables of the trackers, at their defaults unless a person set them: how long a run waits for
# a server that does not answer, in seconds, and no lines on stdout.
ENVIRONMENT = {
    'WANDB_FINISH_TIMEOUT': '60',
    'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '2',
    'MLFLOW_HTTP_REQUEST_TIMEOUT': '20',
    'MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT': 'true',
}
# Options per request of MLflow, and characters per value.
MLFLOW_PARAMS, MLFLOW_CHARACTERS = 100, 500


class Connection(NamedTuple):
    """An open run of a tracker."""

    run: str  # its id, with which it is opened again
    place: str  # where a person finds it
    write_scalars: Callable[[int, Mapping[str, float]], None]
    write_hparams: Callable[[Mapping[str, object]], None]
    finish: Callable[[bool], None]  # argument: whether the run failed or was interrupted


def check(tracking):
    """Refuses a tracker whose package is missing.

    Args:
      tracking: config.tracking.

    Raises:
      UserError: names the package and the command that installs it.
    """
    for name, project in read_projects(tracking).items():
        tracker = TRACKERS[name]
        try:
            module = importlib.import_module(name)
            # Weights & Biases writes into a folder of its name, which Python imports as an empty package.
            if getattr(module, '__file__', None) is None:
                raise ImportError(f'No module named {name!r}')
        # A broken installation may raise anything.
        except Exception as error:
            raise UserError(
                f'tracking.{name} is {project}, but {tracker.title} cannot be imported ({reason(error)}): '
                f"pip install {tracker.package}, or set tracking.{name}=''."
            ) from error


def read_projects(tracking) -> dict[str, str]:
    """The projects of the trackers that are on: {name in TRACKERS: project}."""
    projects = {'wandb': tracking.wandb, 'mlflow': tracking.mlflow}
    return {name: project for name, project in projects.items() if project}


def read_runs(workdir: epath.Path) -> dict[str, dict]:
    """Reads the runs of trackers that belong to a workdir; {} where the file is missing or damaged."""
    with contextlib.suppress(UserError):
        return workdir_lib.read_json(workdir / FILE) or {}
    return {}


def _connect_wandb(*, project, workdir, run) -> Connection:
    import wandb

    # It asks at a terminal otherwise.
    if wandb.setup().settings.mode == 'online' and not wandb.login(prompt=False, verify=False):
        raise UserError('no API key: run `wandb login`, or set WANDB_MODE=offline')
    wandb_run = wandb.init(
        project=project,
        name=_name(workdir),
        id=run,
        resume='allow' if run else None,
        dir=None if workdir_lib.is_in_bucket(workdir) else os.fspath(workdir),
        # Not the run that a caller of td_jax.train may have open.
        reinit='create_new',
        settings=wandb.Settings(console='off', silent=True),
    )
    offline = f'offline in {os.path.dirname(wandb_run.dir)}; `wandb sync` sends it'
    return Connection(
        run=wandb_run.id,
        place=offline if wandb_run.offline else wandb_run.url,
        write_scalars=lambda step, scalars: wandb_run.log(dict(scalars), step=step),
        write_hparams=wandb_run.config.update,
        finish=lambda has_failed: wandb_run.finish(exit_code=int(has_failed)),
    )


def _connect_mlflow(*, project, workdir, run) -> Connection:
    import mlflow
    from mlflow.entities import Metric, Param

    # One line for a failure, without a line for each retry.
    logging.getLogger('urllib3.connectionpool').setLevel(logging.ERROR)
    client = mlflow.MlflowClient()
    if run:
        client.update_run(run, status='RUNNING')
    else:
        experiment = _find_or_make_experiment(client, project)
        run = client.create_run(experiment, run_name=_name(workdir)).info.run_id

    def write_scalars(step, scalars):
        now = int(time.time() * 1000)
        # In its store of files, a name with a slash is in a folder of what stands before the slash.
        metrics = [Metric(key.replace('/', '.'), value, now, step) for key, value in scalars.items()]
        client.log_batch(run, metrics=metrics)

    def write_hparams(hparams):
        params = [Param(key, str(value)[:MLFLOW_CHARACTERS]) for key, value in hparams.items()]
        for start in range(0, len(params), MLFLOW_PARAMS):
            client.log_batch(run, params=params[start : start + MLFLOW_PARAMS])

    return Connection(
        run=run,
        place=f'run {run} of {mlflow.get_tracking_uri()}',
        write_scalars=write_scalars,
        write_hparams=write_hparams,
        finish=lambda has_failed: client.set_terminated(run, 'FAILED' if has_failed else 'FINISHED'),
    )


def _find_or_make_experiment(client, name):
    from mlflow import MlflowException

    existing = client.get_experiment_by_name(name)
    if existing:
        return existing.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        # Another run may have made it in the meantime.
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return existing.experiment_id


def _name(workdir):
    """The name of a run; a teacher's is that of its student and `teacher`."""
    return '/'.join(workdir.parts[-2:])


class Tracker(NamedTuple):
    """How a tracker is called, installed and opened."""

    title: str
    package: str
    connect: Callable[..., Connection]


# {name of its option and its module: Tracker}
TRACKERS = {
    'wandb': Tracker('Weights & Biases', 'wandb', _connect_wandb),
    'mlflow': Tracker('MLflow', 'mlflow-skinny', _connect_mlflow),
}
