"""Keeps a frozen teacher's outputs for fixed inputs on disk, for runs that share teacher and data.

These are the states and predictions that steps read, and the representations that a probe reads.

The folder and its largest size are set for all runs of this process and of those that it starts, by `use`,
which the flags --teacher_outputs and --teacher_outputs_gb of commands call, or by two environment variables.
"""

import hashlib
import os
import pathlib
import platform
from collections.abc import Iterable

import jax
import jaxlib
import numpy as np

import td_jax
from td_jax.data import base as data
from td_jax.data import description
from td_jax.devices import fingerprint, sharding
from td_jax.errors import UserError
from td_jax.files import array_store, workdir
from td_jax.method import objectives
from td_jax.training import assembly, dispatch

# Environment variables, which the processes of --jobs inherit.
FOLDER, GIGABYTES = 'TD_JAX_TEACHER_OUTPUTS', 'TD_JAX_TEACHER_OUTPUTS_GB'
DEFAULT_GIGABYTES = 20.0
# Their name in messages.
WHAT = "the teacher's outputs"


def use(folder: str | None, gigabytes: float | None = None):
    """Sets where teacher outputs are kept, and their largest size; None leaves what the environment says.

    Raises:
      UserError: a size without a folder or that is none, or a folder that cannot be made.
    """
    if gigabytes is not None and not (folder or os.environ.get(FOLDER)):
        raise UserError('--teacher_outputs_gb has no effect without --teacher_outputs; name a folder.')
    if folder:
        path = workdir.resolve(folder)
        _make_folder(path)
        os.environ[FOLDER] = str(path)
    if gigabytes is not None:
        os.environ[GIGABYTES] = str(gigabytes)
        _read_limit()


def _make_folder(path):
    if workdir.is_in_bucket(path):
        raise UserError(
            f'--teacher_outputs {path} is in a bucket, where nothing can be locked; name a folder.'
        )
    workdir.make_folder('teacher_outputs', path)


def _read_limit():
    """The largest size of the folder in bytes."""
    text = os.environ.get(GIGABYTES, DEFAULT_GIGABYTES)
    try:
        return int(1e9 * float(text))
    except (ValueError, OverflowError) as error:
        raise UserError(f'{GIGABYTES} is {text}; it must be a number of GB.') from error


def explain_unused(config) -> str:
    """Why a run of a checked config keeps no teacher outputs, for a person; '' where it keeps them.

    Representations that a probe reads are kept of examples in memory only, which `describe_unused` checks.
    """
    if not objectives.reads_teacher(config):
        return f'method is {config.method}'
    # A probe reads the teacher's representations of images without variation, whatever a step does.
    if not dispatch.keeps_states(config) and not objectives.has_probe(config):
        views = 'has no effect' if config.teacher.views else 'is 0'
        return f'teacher.inputs is {config.teacher.inputs}, and teacher.views {views}'
    return 'there are several processes' if jax.process_count() > 1 else ''


def describe_unused(configs: Iterable) -> str:
    """A line for a person if a folder is set and none of some runs, of checked configs, uses it; else ''.

    Raises:
      UserError: data that decide it cannot be read.
    """
    reasons, reasons_by_data = {}, {}
    for config in configs if os.environ.get(FOLDER) else ():
        reason = explain_unused(config)
        if not reason and not dispatch.keeps_states(config):
            # Only the data say whether they stream.
            part = config.dataset.to_json(), config.teacher.dataset.to_json()
            if part not in reasons_by_data:
                reasons_by_data[part] = _explain_unused_representations(config)
            reason = reasons_by_data[part]
        if not reason:
            return ''
        reasons[reason] = None
    return f'--teacher_outputs has no effect: {"; ".join(reasons)}' if reasons else ''


def _explain_unused_representations(config):
    """Why a run keeps no representations that its probe reads, '' where it keeps them; reads the data."""
    source = assembly.load_source(config, config.dataset)
    parts = source.train, source.evaluation
    is_streamed = all(data.arrays_in_memory(examples) is None for examples in parts)
    return f'{source.name} streams from disk' if is_streamed else ''


def make_keep(config, teacher, teacher_fingerprint: str | None):
    """Makes the argument `keep` of dispatch.make_dispatch for a run; None where nothing is kept.

    Args:
      config: of the run, checked.
      teacher: the dispatch.Teacher, or None.
      teacher_fingerprint: of its parameters.

    Raises:
      UserError: the environment names a folder or a size that cannot be used.
    """
    folder = os.environ.get(FOLDER)
    if not folder or explain_unused(config):
        return None
    path, limit = workdir.resolve(folder), _read_limit()
    _make_folder(path)
    tables = fingerprint.flatten_by_name(teacher.source.tables)
    tables = {name: np.asarray(table) for name, table in tables.items()}

    def keep(like, describe_program, examples, compute):
        """Returns what `compute` does, from the folder where it is there.

        Args:
          like: the result as shapes, types and shardings: a tree of arrays.
          describe_program: () -> the text of the program that computes it of the teacher's parameters and
            tables, and the examples. It says all else, such as the architecture, split point, resolution and
            preprocessing.
          examples: {name: [examples, ...]}, numpy arrays.
          compute: () -> the tree, of arrays on the devices or of NumPy.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        about = {
            'teacher': teacher_fingerprint,
            'model': config.teacher.model.to_dict(),
            'program': hashlib.sha256(describe_program().encode()).hexdigest(),
            'tables': description.digest_arrays(tables),
            'examples': {'count': data.count(examples), 'sha256': description.digest_arrays(examples)},
            'machine': _describe_machine(jax.tree.leaves(shardings)[0].mesh),
        }
        computed = []

        def make():
            computed.append(compute())
            return fingerprint.flatten_by_name(computed[0])

        arrays = array_store.get_or_make(path, about, make, limit=limit, what=WHAT)
        if computed:
            return computed[0]
        leaves = [arrays[name] for name in fingerprint.flatten_by_name(like)]
        return sharding.place(jax.tree.unflatten(jax.tree.structure(like), leaves), shardings)

    return keep


def _describe_machine(mesh):
    """What the bits of a result may depend on besides its program and its inputs."""
    device = mesh.devices.flat[0]
    return {
        'platform': device.platform,
        'device': device.device_kind,
        'mesh': list(mesh.devices.shape),
        'processor': _processor(),
        # A product may be cut over cores.
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        'versions': [td_jax.__version__, jax.__version__, jaxlib.__version__],
    }


def _processor():
    """The name of the processor, as Linux or Python knows it."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
