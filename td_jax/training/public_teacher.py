"""Completes the config of a run whose teacher is a public checkpoint, from that checkpoint."""

from etils import epath

from td_jax import config as config_lib
from td_jax import pretrained
from td_jax.configs import common
from td_jax.data import SOURCES
from td_jax.devices import processes
from td_jax.errors import Missing
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.pretrained import architecture, labels


def complete(
    config, folder: epath.Path, typed: list[str] | tuple[str, ...] = (), *, any_method: bool = False
):
    """Completes a config from its public checkpoint: the teacher, and a student that starts from it.

    Options that the user set stay, and are refused if the checkpoint contradicts them. An option counts as
    set if it was typed on the command line. If the checkpoint was not typed but named in the config, every
    value of the config other than the default counts as set, too. If it was typed, the other values of the
    config describe the teacher that the checkpoint replaces, and are replaced with it.

    Unless it is set, `teacher.labels` becomes 'probe' where a term compares predictions of different labels,
    or the teacher has no head.

    A message lists the options taken from the checkpoint.

    Args:
      config: of a run. folder: its workdir. typed: the keys that were set on the command line. any_method:
      whether to complete it for methods that read a teacher and compare predictions, even if the config's
      does not.

    Returns:
      A config; the same one if no public checkpoint is its teacher.

    Raises:
      UserError: an option contradicts the checkpoint, or `config.check` refuses the config.
    """
    full, checkpoint, set_keys = _complete_architecture(config, typed, any_method)
    if checkpoint and 'teacher.labels' not in set_keys:
        full.teacher.labels, why = _choose_labels(full, checkpoint, folder, any_method)
        if why:
            processes.say(
                f'teacher.labels={full.teacher.labels}: {why}; a linear probe on the teacher is fitted to '
                "the student's labels first"
            )
    return full


def complete_architecture(config, typed: list[str] | tuple[str, ...] = ()):
    """Completes a config like `complete`, except for teacher.labels; it reads no data."""
    return _complete_architecture(config, typed)[0]


def _complete_architecture(config, typed, any_method=False):
    """-> (config, checkpoint or None, the keys that the user set)."""
    config_lib.check_names(config)
    location = config.teacher.pretrained
    if not location or not (any_method or config_lib.has_teacher(config)):
        config_lib.check(config)
        return config, None, set()
    set_keys = _find_set_keys(config, typed)
    checkpoint = pretrained.read(location)
    full = architecture.complete_config(checkpoint, config, set_keys.__contains__, common.get_config())
    config_lib.check(full)
    # A size of 0 is that of the variant.
    changes = {key: value for key, value in architecture.changed_values(config, full).items() if value}
    if changes:
        settings = ' '.join(f'{key}={architecture.format_value(value)}' for key, value in changes.items())
        processes.say(f'{location} sets {settings}')
    if config.model.initial != full.model.initial:
        processes.say('model.initial=random: a student of this architecture cannot start from this teacher')
    return full, checkpoint, set_keys


def _find_set_keys(config, typed):
    typed = set(typed)
    if 'teacher.pretrained' in typed:
        return typed
    defaults = config_lib.flatten(common.get_config())
    changed = {key for key, value in config_lib.flatten(config).items() if value != defaults.get(key)}
    # A config that names an architecture also sets its split, even to the default.
    splits = {f'{part}model.split' for part in ('', 'teacher.') if f'{part}model.name' in changed}
    return typed | changed | splits


def _choose_labels(config, checkpoint, folder, any_method):
    """Chooses teacher.labels: -> (value, the reason if it differs from the config)."""
    labels_are, method = config.teacher.labels, objectives.METHODS[config.method]
    is_compared = objectives.reads(config, 'bridged_logits') and 'probe' in method.bridges
    if labels_are != 'shared' or not (is_compared or any_method):
        return labels_are, ''
    count = checkpoint.architecture.num_outputs
    if not count:
        is_zero = checkpoint.has_zero_head
        return 'probe', f'the checkpoint has {"a head of zeros" if is_zero else "no head"}'
    try:
        names = _label_names(config)
    except Missing:
        stored = workdir.read_json(folder / workdir.CONFIG)
        if stored is None:
            raise
        # A finished run that has lost its data is still the same run.
        return config_lib.complete(stored)['teacher.labels'], ''
    if labels.output_names(checkpoint, names) == names:
        return labels_are, ''
    return 'probe', (
        f'the checkpoint predicts {count:,} labels, and the student {len(names)} others '
        f'({objectives.preview(names)})'
    )


def _label_names(config):
    """The labels of a run's data set; reads no images."""
    dataset = config.dataset.copy_and_resolve_references()
    # What is streamed is only listed.
    dataset.update({'kept_gb': 0.0, 'examples_per_class': 0})
    return tuple(SOURCES[dataset.name](dataset, dataset).label_names)
