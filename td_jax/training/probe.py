"""The probe: a linear head on the frozen teacher that predicts the student's labels.

It is fitted before the student starts: multinomial logistic regression by L-BFGS, to convergence, on the
representations that the teacher's head reads of the training examples without augmentation. The objective is
the mean cross entropy plus

    |kernel|^2 / (2 C n)

with n examples and C = 1. Representations are centred and divided by the root of their mean variance, so that
C means the same for every teacher. This is scikit-learn's LogisticRegression at its default penalty. Without
a penalty, there is no solution where a plane separates the examples, as it usually does if they are few.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from td_jax.models import base

C = 1.0
# Examples per part of the objective.
CHUNK = 8192
# The fit has converged where no number of the gradient is larger; scikit-learn's tolerance is 100 times that.
GRADIENT = 1e-6
MOST_ITERATIONS = 5000


class Fit(NamedTuple):
    """A fitted probe."""

    params: dict[str, np.ndarray]  # kernel [width, labels] and bias [labels], of unscaled representations
    accuracy: float  # on the training examples
    gradient: float  # the largest number of the gradient at the end


def make_zeros(upper: jax.Array, num_labels: int) -> dict[str, jax.Array]:
    """Makes a probe of zeros for higher states of a teacher, [batch, ...]."""
    width = base.read_by_head(upper).shape[-1]
    zeros = {'kernel': (width, num_labels), 'bias': (num_labels,)}
    return {name: jnp.zeros(shape, jnp.float32) for name, shape in zeros.items()}


def representations(upper: jax.Array) -> jax.Array:
    """The representations of higher states of a teacher: [batch, ...] -> [batch, width], float32."""
    return base.read_by_head(upper).astype(jnp.float32)


def predictions(params: dict, upper: jax.Array) -> jax.Array:
    """The logits of a probe on higher states of a teacher: [batch, ...] -> [batch, labels], float32."""
    products = jnp.matmul(representations(upper), params['kernel'], precision=jax.lax.Precision.HIGHEST)
    return products + params['bias'][None]


def accuracy(params: dict, x: np.ndarray, labels: np.ndarray) -> float:
    """The share of representations [examples, width] whose label [examples] a probe predicts."""
    return float(np.mean(np.argmax(x @ params['kernel'] + params['bias'], axis=-1) == labels))


def fit(x: np.ndarray, labels: np.ndarray, num_labels: int) -> Fit:
    """Fits a probe in float64 on the host.

    Args:
      x: [examples, width] float32, the teacher's representations.
      labels: [examples], the student's, from 0.
      num_labels: number of labels.
    """
    count, width = x.shape
    shape, parts = (width + 1, num_labels), [slice(i, i + CHUNK) for i in range(0, count, CHUNK)]
    mean = sum(x[part].sum(axis=0, dtype=np.float64) for part in parts) / count
    # 0 for constant representations; then any scale will do.
    scale = np.sqrt(sum(np.square(x[part] - mean).sum() for part in parts) / x.size) or 1.0

    def objective(flat):
        """The mean loss of the parameters [width + 1, labels], the bias last, and its gradient."""
        kernel, bias = np.split(flat.reshape(shape), [width])
        loss, gradient = np.sum(kernel**2) / (2 * C), np.concatenate([kernel / C, np.zeros_like(bias)])
        for part in parts:
            scaled, own = (x[part] - mean) / scale, labels[part]
            log_p = scipy.special.log_softmax(scaled @ kernel + bias, axis=-1)
            loss -= log_p[np.arange(len(own)), own].sum()
            error = np.exp(log_p)
            error[np.arange(len(own)), own] -= 1.0
            gradient += np.concatenate([scaled.T @ error, error.sum(axis=0, keepdims=True)])
        return loss / count, gradient.ravel() / count

    options = {'maxiter': MOST_ITERATIONS, 'maxfun': 2 * MOST_ITERATIONS, 'gtol': GRADIENT, 'ftol': 0.0}
    start = np.zeros(shape[0] * num_labels)
    solution = scipy.optimize.minimize(objective, start, jac=True, method='L-BFGS-B', options=options)
    kernel, bias = np.split(solution.x.reshape(shape), [width])
    params = {'kernel': np.float32(kernel / scale), 'bias': np.float32(bias[0] - mean @ kernel / scale)}
    return Fit(params, accuracy(params, x, labels), float(np.max(np.abs(solution.jac))))
