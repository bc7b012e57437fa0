"""Diagnostics of a run: how much each term moves the student, and whether messages carry information.

They are computed outside of the training steps and do not change them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from td_jax.devices import processes
from td_jax.method import objectives, shared
from td_jax.training import train_step

# A term is inert when its share of the gradient on the student is less than this.
INERT = 0.01
# Messages have collapsed when their standard deviation is less than this times that of the first line, when
# the encoders are untrained.
COLLAPSED = 0.1
# Differences below this times the largest number are rounding errors.
ROUNDING = 1e-6
# The models and the parts of their states, as Step.signals names them.
SIDES, PARTS = (train_step.STUDENT, train_step.TEACHER), ('lower', 'upper')


def applies(config) -> bool:
    """Whether a run has diagnostics: they are switched on, and it has a term besides the task."""
    return config.diagnostics and bool(objectives.active_terms(config))


def diagnose(
    step: train_step.Step, state, key, teacher_upper, batch, hyperparameters
) -> dict[str, jax.Array]:
    """Computes the diagnostics of one seed.

    Args:
      step: the functions of a run to which diagnostics apply.
      state, key, teacher_upper, batch, hyperparameters: the arguments of the next update.

    Returns:
      {name: scalar}: share_TERM, SIGNAL_std and SIGNAL_rank of each of Step.signals, and, where states are
      compared, SIDE_lower_share and SIDE_upper_share, the share of each part in the variance of {s; e} as
      communication sees it. A part weighs that much in a distance from what is the same for every example.
    """
    shares = step.shares(state, key, teacher_upper, batch, hyperparameters)
    metrics = {f'share_{term}': share for term, share in shares.items()}
    signals = step.signals(state.params, batch, state.scales)
    for name, signal in signals.items():
        metrics[f'{name}_std'], metrics[f'{name}_rank'] = measure_spread(signal)
    for side in SIDES if step.compares_states else ():
        scales = (1.0, 1.0) if state.scales is None else state.scales[side]
        variances = [
            signals[f'{side}_{part}'][0].size * jnp.square(metrics[f'{side}_{part}_std'] / scale)
            for part, scale in zip(PARTS, scales, strict=True)
        ]
        total = sum(variances)
        for part, variance in zip(PARTS, variances, strict=True):
            metrics[f'{side}_{part}_share'] = variance / jnp.where(total > 0, total, 1.0)
    return metrics


class Moments(NamedTuple):
    """The size of a part of states over some examples."""

    variance: jax.Array  # unbiased, of each feature, averaged over the features
    mean_square: jax.Array


def measure_parts(step: train_step.Step, state, key, teacher_upper, batch, hyperparameters):
    """Measures the states of one seed: {side: {'lower', 'upper': Moments}}; arguments as of `diagnose`."""
    signals = step.signals(state.params, batch, state.scales)
    return {side: {part: measure_moments(signals[f'{side}_{part}']) for part in PARTS} for side in SIDES}


def measure_moments(signal) -> Moments:
    """The Moments of a signal [batch, ...] of at least two examples, in float32."""
    x = signal.astype(jnp.float32)
    return Moments(x.var(axis=0, ddof=1).mean(), jnp.square(x).mean())


def compute_scales(batches: Sequence[dict]) -> dict[str, shared.Scales]:
    """Computes the Scales of both models from some batches.

        scale = sqrt(mean over batches and features of the variance over the examples of a batch)

    The variances of batches are unbiased, so that their mean does not depend on how large a batch is. A part
    that does not vary has the scale 1.

    Args:
      batches: of `measure_parts`, with Moments of any shape.

    Returns:
      {STUDENT or TEACHER: Scales}, float32 of that shape
    """
    means = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *batches)
    return {
        side: shared.Scales(**{part: _take_root(moments) for part, moments in parts.items()})
        for side, parts in means.items()
    }


def _take_root(moments):
    varies = moments.variance > ROUNDING**2 * moments.mean_square
    return np.sqrt(np.where(varies, moments.variance, 1.0)).astype(np.float32)


def measure_spread(signal) -> tuple[jax.Array, jax.Array]:
    """Measures how much a signal varies over the examples of a batch, and in how many directions.

        std  = sqrt(mean over features of the variance over examples)
        rank = (sum_i l_i)^2 / sum_i l_i^2      with the eigenvalues l of the covariance

    The mean over the examples is subtracted at each token separately, because a difference between tokens
    that is the same for every example carries no information. Then tokens and cells count as examples.

    Args:
      signal: [batch, width], [batch, tokens, width] or [batch, rows, columns, width].

    Returns:
      (std, rank), float32 scalars. The rank is from 1 to width, or 0 for a constant signal. It is computed
      from the trace and the squared norm of a matrix: a program with several eigendecompositions hung on a
      CPU of two cores.

    Reference:
      Gao et al. 2017, the participation ratio.
    """
    values = signal.astype(jnp.float32)
    x = values - values.mean(axis=0, keepdims=True)
    x = x.reshape(-1, x.shape[-1])
    largest = jnp.max(jnp.abs(x))
    # The mean has a rounding error of that order. What is not finite stays so.
    differs = ~(largest <= ROUNDING * jnp.max(jnp.abs(values)))
    largest = jnp.where(differs, largest, 0.0)
    # Scaled to a maximum of 1, so that no square underflows.
    x = jnp.where(differs, x / jnp.where(differs, largest, 1.0), 0.0)
    std = largest * jnp.sqrt(jnp.mean(jnp.square(x)))
    rows, width = x.shape
    gram = jnp.matmul(*((x, x.T) if rows < width else (x.T, x)), precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(jnp.square(gram))
    return std, jnp.where(squared == 0, 0.0, jnp.trace(gram) ** 2 / jnp.where(squared == 0, 1.0, squared))


class ProgressMonitor:
    """Warns, once each, of inert terms and of collapsed messages."""

    def __init__(self, config, name: str, lines: list[dict], constant: Sequence[str] = ()):
        """Starts after some lines of metrics.jsonl.

        Args:
          config: of the run.
          name: of the data set.
          lines: of metrics.jsonl.
          constant: terms that are constant by definition, of which it does not warn.
        """
        self._config, self._about, self._constant = config, f'{config.method} {name}', constant
        self._weights = f'{config.method}.weights'
        self._first, self._warned = {}, set()
        for line in lines:
            self._remember(line)

    def check(self, step: int, scalars: dict[str, float]):
        """Checks the diagnostics {name: mean over the seeds} that were computed before a step."""
        self._remember(scalars)
        # Terms may be inert before the first step, and while a part is frozen or weights warm up.
        is_whole = train_step.find_ramp_up_stage(step, self._config) == 2
        if step and is_whole and train_step.compute_weight_share(step, self._config) == 1:
            for name, value in scalars.items():
                term = name.removeprefix('share_')
                if name.startswith('share_') and value < INERT and term not in self._constant:
                    self._warn(name, step, self._describe_inert(term, value))
        for name, first in self._first.items():
            if name in scalars and scalars[name] < COLLAPSED * first:
                self._warn(name, step, self._describe_collapsed(name.split('_')[0], scalars[name], first))

    def _remember(self, line):
        for side in ('student', 'teacher'):
            name = f'{side}_message_std'
            if name in line:
                self._first.setdefault(name, line[name])

    def _describe_inert(self, term, share):
        cure = f'lower {self._weights}' if term == 'task' else f'raise {self._weights}.{term}'
        return f'the term {term} is inert: {100 * share:.2g}% of the gradient on the student; {cure}'

    def _describe_collapsed(self, side, std, first):
        return (
            f"the {side}'s messages have collapsed: their standard deviation was {first:.2g} at first and is "
            f'{std:.2g}; the term that compares them is small only for that reason: lower its weight in '
            f'{self._weights}'
        )

    def _warn(self, name, step, text):
        if name not in self._warned:
            self._warned.add(name)
            processes.say(f'{self._about}: step {step}/{self._config.num_steps}  warning: {text}')
