"""Which step of a run is kept, and whether it ends early: what its validations say.

A step's score is the mean of the metric over the seeds, so the students of a run are all of one step. A run
with several seeds may therefore keep another step than each of them would alone.
"""

from typing import NamedTuple

from td_jax.training import train_step


class Best(NamedTuple):
    """What the validations of a run have said so far; a checkpoint holds it as JSON."""

    step: int  # of the best score; 0 before there is any
    score: float | None
    validated: int  # the last step with a score
    since: int  # scores after the best one that count towards config.patience


# Before the first validation.
NOTHING = Best(0, None, 0, 0)


def applies(config) -> bool:
    """Whether a run reads anything of its validations while it trains."""
    return config.keep == 'best' or config.patience > 0


def after(best: Best, step: int, score: float, less_is_better: bool, config) -> Best:
    """What is known after another validation.

    Args:
      best: what was known before.
      step: that was validated; one that was validated before changes nothing.
      score: its metric, the mean over the seeds. One as good as the best comes too late to replace it.
      less_is_better: of the metric.
      config: of the run.
    """
    if step <= best.validated:
        return best
    is_better = best.score is None or (score < best.score if less_is_better else score > best.score)
    if is_better:
        return Best(step, score, step, 0)
    # While a ramp-up trains the student alone and then its communication alone, there is no conversation to
    # judge yet, and in the second part the student rests.
    counts = not train_step.has_ramp_up(config) or step > sum(config.td.ramp_up)
    return best._replace(validated=step, since=best.since + counts)


def ends(best: Best, config) -> bool:
    """Whether a run has waited for a better score as often as it should."""
    return 0 < config.patience <= best.since
