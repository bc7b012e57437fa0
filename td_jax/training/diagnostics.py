"""What a run says on its way of how it learns: who moves the student, and whether there is anything to say.

It is computed apart from the training steps and changes none of them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from td_jax.devices import processes
from td_jax.method import objectives
from td_jax.training import train_step

# A term is inert when its share of the gradient on the student is less than this.
INERT = 0.01
# Messages have collapsed when their standard deviation is less than this times that of the first line, which
# is that of encoders that have learned nothing yet.
COLLAPSED = 0.1
# What differs by less than this times the largest number does so by rounding.
ROUNDING = 1e-6


def applies(config) -> bool:
    """Whether a run has diagnostics: it wants them, and something beside the task moves its student."""
    return config.diagnostics and bool(objectives.active_terms(config))


def measured(step: train_step.Step, state, key, teacher_upper, batch, numbers) -> dict[str, jax.Array]:
    """The diagnostics of one seed.

    Args:
      step: the functions of a run to which diagnostics apply.
      state, key, teacher_upper, batch, numbers: what the next update is called with.

    Returns:
      {name: scalar}: share_TERM, and SIGNAL_std and SIGNAL_rank of each of Step.signals
    """
    shares = step.shares(state, key, teacher_upper, batch, numbers)
    found = {f'share_{term}': share for term, share in shares.items()}
    for name, signal in step.signals(state.params, batch).items():
        found[f'{name}_std'], found[f'{name}_rank'] = spread(signal)
    return found


def spread(signal) -> tuple[jax.Array, jax.Array]:
    """How much a signal says of the examples of a batch, and in how many directions.

    Of each number its mean over the examples is taken out first, at each token by itself: what differs from
    token to token in the same way for every example says nothing of any. Then tokens, and the
    cells of a feature map, count as examples.

    Args:
      signal: [batch, width], [batch, tokens, width] or [batch, rows, columns, width].

    Returns:
      (std, rank), float32 scalars. std: the root of the mean of the variances over the examples. rank: the
      effective rank as the participation ratio (Gao and others 2017), (sum l_i)^2 / sum l_i^2 of the
      eigenvalues l of the covariance; from 1 to width, or 0 where nothing differs. Sums of eigenvalues and of
      their squares are the trace and the squared norm of a matrix, so that nothing is decomposed: a program
      of several decompositions hung on a CPU of two cores.
    """
    given = signal.astype(jnp.float32)
    x = given - given.mean(axis=0, keepdims=True)
    x = x.reshape(-1, x.shape[-1])
    largest = jnp.max(jnp.abs(x))
    # The mean is known to some roundings of what it is the mean of. What is not finite stays so.
    differs = ~(largest <= ROUNDING * jnp.max(jnp.abs(given)))
    largest = jnp.where(differs, largest, 0.0)
    # The largest is 1, so that no square of a small number is 0.
    x = jnp.where(differs, x / jnp.where(differs, largest, 1.0), 0.0)
    std = largest * jnp.sqrt(jnp.mean(jnp.square(x)))
    rows, width = x.shape
    gram = jnp.matmul(*((x, x.T) if rows < width else (x.T, x)), precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(jnp.square(gram))
    return std, jnp.where(squared == 0, 0.0, jnp.trace(gram) ** 2 / jnp.where(squared == 0, 1.0, squared))


class Watch:
    """Warns of inert terms and of collapsed messages, of each once."""

    def __init__(self, config, name: str, lines: list[dict], constant: Sequence[str] = ()):
        """A watch that goes on after some lines of metrics.jsonl.

        Args:
          config: of the run.
          name: of the data set.
          lines: of metrics.jsonl.
          constant: terms that are constant by definition, which no weight would help.
        """
        self._config, self._about, self._constant = config, f'{config.method} {name}', constant
        self._weights = f'{config.method}.weights'
        self._first, self._warned = {}, set()
        for line in lines:
            self._remember(line)

    def look(self, step: int, scalars: dict[str, float]):
        """Looks at what was measured before a step, {name: mean over the seeds}."""
        self._remember(scalars)
        # Before the first step nothing has been learned; while a part rests or warms up, its terms need not
        # matter.
        is_whole = train_step.ramp_up_stage(step, self._config) == 2
        if step and is_whole and train_step.share_of_weights(step, self._config) == 1:
            for name, value in scalars.items():
                term = name.removeprefix('share_')
                if name.startswith('share_') and value < INERT and term not in self._constant:
                    self._warn(name, step, self._inert(term, value))
        for name, first in self._first.items():
            if name in scalars and scalars[name] < COLLAPSED * first:
                self._warn(name, step, self._collapsed(name.split('_')[0], scalars[name], first))

    def _remember(self, line):
        for side in ('student', 'teacher'):
            name = f'{side}_message_std'
            if name in line:
                self._first.setdefault(name, line[name])

    def _inert(self, term, share):
        cure = f'lower {self._weights}' if term == 'task' else f'raise {self._weights}.{term}'
        return f'the term {term} is inert: {100 * share:.2g}% of the gradient on the student; {cure}'

    def _collapsed(self, side, std, first):
        return (
            f"the {side}'s messages have collapsed: their standard deviation was {first:.2g} at first and is "
            f'{std:.2g}; what compares them is small because nothing is said: lower its weight in '
            f'{self._weights}'
        )

    def _warn(self, name, step, text):
        if name not in self._warned:
            self._warned.add(name)
            processes.say(f'{self._about}: step {step}/{self._config.num_steps}  warning: {text}')
