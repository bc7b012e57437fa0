"""What the numbers of some seeds say: their mean, and between which bounds the true one lies.

Intervals are two-sided 95% t intervals, mean ± t(0.975, n - 1) s / sqrt(n), with n seeds and s their standard
deviation. A difference is paired: that of each seed to the same seed of the baseline, whose data order and
initial parameters are the same. No interval is corrected for how many of them a table has.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    half_width: float | None  # of the 95% t interval; None where one value, or no pairing, tells no spread
    count: int  # seeds


def of(values) -> Estimate:
    """The mean of some seeds' values, [n] with n >= 1."""
    values = np.asarray(values, np.float64)
    count, half_width = len(values), None
    if count > 1:
        stderr = values.std(ddof=1) / np.sqrt(count)
        half_width = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stderr)
    return Estimate(float(values.mean()), half_width, count)


def paired_difference(values, baseline) -> Estimate:
    """The mean of the differences of the same seeds, [n] less [n], with the interval of a paired t-test."""
    return of(np.subtract(values, baseline))
