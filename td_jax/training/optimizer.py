"""From a config to an optax optimizer and its learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# name -> f(optimizer config) -> GradientTransformation, before weight decay and the learning rate
OPTIMIZERS = {
    'adamw': lambda config: optax.scale_by_adam(),
    'sgd': lambda config: optax.trace(config.momentum),
}

# name -> f(peak, decay steps) -> schedule after the warm-up
SCHEDULES = {
    'constant': lambda peak, steps: optax.constant_schedule(peak),
    'cosine': optax.cosine_decay_schedule,
}

# Prefixes of the names of parameters that multiply an input: kernels of a Dense or of a part of one, and rows
# of an embedding. Biases, norms, class tokens and positions are not among them.
KERNELS = ('kernel', 'embedding')


def _is_kernel(path, leaf) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return name.startswith(KERNELS)


# name -> f(parameters) -> a tree of bools: where weight decay acts
DECAYED = {
    'kernels': lambda params: jax.tree_util.tree_map_with_path(_is_kernel, params),
    'all': lambda params: jax.tree.map(lambda leaf: True, params),
}


class Rates(NamedTuple):
    """The factors of an optimizer: numbers, or scalars of a compiled step."""

    learning_rate: jax.Array | float  # its peak
    weight_decay: jax.Array | float


def depends_on_length(config) -> bool:
    """Whether the learning rate of a step depends on the number of steps, by an optimizer config."""
    return config.schedule != 'constant'


def make_optimizer(config, num_steps: int, rates: Rates | None = None):
    """Makes the optimizer of one group of parameters.

        g <- g min(1, clip_norm / |g|)
        d <- the direction of Adam, or the momentum, of g
        parameter <- parameter - learning_rate(step) (d + weight_decay parameter)

    Weight decay is decoupled from the gradient for both (Loshchilov and Hutter 2017). |g| is the norm of all
    gradients of the group.

    Args:
      config: the fields of `td_jax.configs.common.optimizer_config`, checked.
      num_steps: length of the run, where a decaying learning rate reaches 0.
      rates: used instead of the config's; whether there is weight decay is still read from the config.

    Returns:
      (tx, learning_rate): an optax GradientTransformation, and the function whose negative value at a step
      its updates are multiplied by. The step is that of the run, even if the group was frozen for a part of
      it.
    """
    rates = rates or Rates(config.learning_rate, config.weight_decay)
    warmup = config.warmup_steps
    schedule = SCHEDULES[config.schedule](rates.learning_rate, num_steps - warmup)
    if warmup:
        warmup_schedule = optax.linear_schedule(0.0, rates.learning_rate, warmup)
        schedule = optax.join_schedules([warmup_schedule, schedule], [warmup])
    parts = [OPTIMIZERS[config.name](config)]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(rates.weight_decay, DECAYED[config.decayed]))
    # A constant schedule returns a Python number.
    return optax.chain(*parts), lambda step: jnp.asarray(schedule(step), jnp.float32)
