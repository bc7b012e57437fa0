"""The config of a run whose teacher is a public checkpoint: what that says of itself is taken from it."""

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


def configured(
    config, folder: epath.Path, typed: list[str] | tuple[str, ...] = (), *, any_method: bool = False
):
    """A config in full: what its public checkpoint says of the teacher, and of a student that starts from it.

    What a person set stays, and is refused where the checkpoint is something else. Set is what was typed. Of
    a config that names the checkpoint itself, so is every value that is not the default. Where the checkpoint
    was typed, the values of the config are of the teacher that it would have had, and are replaced.

    Where a term compares predictions with those of other labels, or of a teacher without a head,
    `teacher.labels` becomes 'probe', unless it is set.

    What was taken from the checkpoint is said in a line.

    Args:
      config: of a run.
      folder: its workdir.
      typed: the keys that were set on a command line.
      any_method: whether the labels are for methods that compare predictions, too, if the config's does not.

    Returns:
      A config; the same one where no checkpoint is its teacher.

    Raises:
      UserError: names what is set to something else than the checkpoint has, or what `config.check` refuses.
    """
    full, checkpoint, set_keys = _with_architecture(config, typed)
    if checkpoint and 'teacher.labels' not in set_keys:
        full.teacher.labels, why = _comparison(full, checkpoint, folder, any_method)
        if why:
            processes.say(
                f'teacher.labels={full.teacher.labels}: {why}; a linear probe on the teacher is fitted to '
                "the student's labels first"
            )
    return full


def with_architecture(config, typed: list[str] | tuple[str, ...] = ()):
    """The same but for labels, which needs no data."""
    return _with_architecture(config, typed)[0]


def _with_architecture(config, typed):
    """(config, checkpoint or None, the keys that a person set)"""
    config_lib.check_names(config)
    location = config.teacher.pretrained
    if not location or not config_lib.has_teacher(config):
        config_lib.check(config)
        return config, None, set()
    set_keys = _set_keys(config, typed)
    checkpoint = pretrained.read(location)
    full = architecture.configured(checkpoint, config, set_keys.__contains__, common.get_config())
    config_lib.check(full)
    # A size of 0 is that of the variant.
    changes = {key: value for key, value in architecture.difference(config, full).items() if value}
    if changes:
        said = ' '.join(f'{key}={architecture.as_text(value)}' for key, value in changes.items())
        processes.say(f'{location} sets {said}')
    if config.model.initial != full.model.initial:
        processes.say('model.initial=random: a student of this architecture cannot start from this teacher')
    return full, checkpoint, set_keys


def _set_keys(config, typed):
    """The keys that a person set to what they are."""
    typed = set(typed)
    if 'teacher.pretrained' in typed:
        return typed
    defaults = config_lib.flatten(common.get_config())
    changed = {key for key, value in config_lib.flatten(config).items() if value != defaults.get(key)}
    # A file that names an architecture means its split, too, which may be the default.
    splits = {f'{part}model.split' for part in ('', 'teacher.') if f'{part}model.name' in changed}
    return typed | changed | splits


def _comparison(config, checkpoint, folder, any_method):
    """(teacher.labels, why that is not what it was): a probe where predictions are of other labels."""
    labels_are, method = config.teacher.labels, objectives.METHODS[config.method]
    is_compared = objectives.reads(config, 'bridged_logits') and 'probe' in method.bridges
    if labels_are != 'shared' or not (is_compared or any_method):
        return labels_are, ''
    count = checkpoint.architecture.num_outputs
    if not count:
        return 'probe', 'the checkpoint has no head'
    try:
        names = _label_names(config)
    except Missing:
        stored = workdir.read_json(folder / workdir.CONFIG)
        if stored is None:
            raise
        # A finished run that has lost its data is still the same run.
        return config_lib.completed(stored)['teacher.labels'], ''
    if labels.predicted(checkpoint, names) == names:
        return labels_are, ''
    return 'probe', (
        f'the checkpoint predicts {count:,} labels, and the student {len(names)} others '
        f'({objectives.preview(names)})'
    )


def _label_names(config):
    """The labels of a run's data set, whose images are not read."""
    dataset = config.dataset.copy_and_resolve_references()
    # What is streamed is only listed.
    dataset.update({'kept_gb': 0.0, 'examples_per_class': 0})
    return tuple(SOURCES[dataset.name](dataset, dataset).label_names)
