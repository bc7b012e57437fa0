"""Selection by validation: which step's parameters a run keeps, and whether it stops early.

A step's score is the mean of the metric over the seeds, and all students of a run are of the same step. A run
with several seeds may therefore keep another step than a run of one of them would.
"""

from typing import NamedTuple

from td_jax.training import train_step


class Best(NamedTuple):
    """The best validation of a run so far; a checkpoint holds it as JSON."""

    step: int  # of the best score; 0 before the first validation
    score: float | None
    validated: int  # the last validated step
    since: int  # validations after the best one that count towards config.patience


# Before the first validation.
NO_VALIDATION = Best(0, None, 0, 0)


def applies(config) -> bool:
    """Whether a run uses its validations while it trains."""
    return config.keep == 'best' or config.patience > 0


def update(best: Best, step: int, score: float, less_is_better: bool, config) -> Best:
    """The Best after another validation.

    Args:
      best: the Best before it.
      step: the validated step; one that was validated before changes nothing.
      score: its metric, the mean over the seeds. It replaces the best only if it is better.
      less_is_better: whether a lower metric is better.
      config: of the run.
    """
    if step <= best.validated:
        return best
    is_better = best.score is None or (score < best.score if less_is_better else score > best.score)
    if is_better:
        return Best(step, score, step, 0)
    # During a ramp-up there is no conversation to judge yet, and in its second stage the student is frozen.
    counts = not train_step.has_ramp_up(config) or step > sum(config.td.ramp_up)
    return best._replace(validated=step, since=best.since + counts)


def ends(best: Best, config) -> bool:
    """Whether a run's patience is exhausted."""
    return 0 < config.patience <= best.since
