"""From a config to an optax optimizer and its learning rate."""

import optax

# name -> f(optimizer config, learning rate) -> GradientTransformation
OPTIMIZERS = {
    'adamw': lambda config, rate: optax.adamw(rate, weight_decay=config.weight_decay),
    'sgd': lambda config, rate: optax.sgd(rate, momentum=config.momentum),
}

# name -> f(peak, decay steps) -> schedule after the warm-up
SCHEDULES = {
    'constant': lambda peak, steps: optax.constant_schedule(peak),
    'cosine': optax.cosine_decay_schedule,
}


def make_optimizer(config, num_steps: int):
    """Makes the optimizer of a run.

    Args:
      config: the fields of `configs.common.optimizer_config`, checked.
      num_steps: length of the run, where a decaying learning rate reaches 0.

    Returns:
      (tx, learning_rate): an optax GradientTransformation without gradient clipping, which acts on
      all parameters at once and so belongs to the step, and the function step -> learning rate.
    """
    warmup = config.warmup_steps
    learning_rate = SCHEDULES[config.schedule](config.learning_rate, num_steps - warmup)
    if warmup:
        rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
        learning_rate = optax.join_schedules([rise, learning_rate], [warmup])
    return OPTIMIZERS[config.name](config, learning_rate), learning_rate
