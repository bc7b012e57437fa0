"""Linear CKA: how alike two representations of the same examples are (Kornblith et al. 2019)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


def gram(x) -> np.ndarray:
    """Xc Xc^T of features centred over examples, in float64 and on a scale of its own.

    A feature that differs by no more than the rounding of its type is constant, and adds nothing.

    Args:
      x: [n, ...], one row per example; what follows the first axis is flattened.

    Returns:
      [n, n]; all zeros where every feature is constant

    Raises:
      ValueError: fewer than two examples, or numbers that are not finite.
    """
    x = np.asarray(x)
    if x.ndim < 1 or len(x) < 2:
        raise ValueError(f'CKA compares at least 2 examples; these are {x.shape}.')
    rounding = float(jnp.finfo(x.dtype).eps) if jnp.issubdtype(x.dtype, jnp.floating) else 0.0
    x = x.reshape(len(x), -1).astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError('CKA is of finite numbers.')
    if not x.size:
        return np.zeros((len(x), len(x)))
    centred = x - x.mean(axis=0)
    varies = abs(centred).max(axis=0) > rounding * abs(x).max(axis=0)
    centred = np.where(varies, centred, 0.0)
    # CKA does not depend on the scale, but squares of squares of very small or large numbers have no place
    # in a float64.
    centred /= abs(centred).max() or 1.0
    return centred @ centred.T


def u_centred(k) -> np.ndarray:
    """A Gram matrix without its diagonal and what its rows and columns have in common.

        K_ij - sum_l K_il / (n - 2) - sum_l K_lj / (n - 2) + sum_kl K_kl / ((n - 1) (n - 2)),  0 for i = j

    with sums that leave out the diagonal. The sum of the products of two of them, over n (n - 3), is the
    unbiased estimator of HSIC of Song et al. 2012 (Székely and Rizzo 2014 write it so).

    Args:
      k: [n, n], of n >= 4 examples.

    Returns:
      [n, n]; all zeros where only rounding is left, as where one example alone differs from the others
    """
    n = len(k)
    without = k - np.diag(np.diag(k))
    sums = without.sum(axis=1)
    centred = without - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    rounding = n * n * np.finfo(np.float64).eps
    return centred if np.linalg.norm(centred) > rounding * np.linalg.norm(k) else np.zeros_like(k)


class Estimator(NamedTuple):
    """How CKA is estimated from examples: <C(K), C(L)> / (|C(K)| |C(L)|) of Gram matrices K and L."""

    centre: Callable[[np.ndarray], np.ndarray]  # C, of a Gram matrix whose features are centred
    fewest: int  # examples of which the number says something
    lowest: float  # that it can be
    text: str


ESTIMATORS = {
    'debiased': Estimator(
        u_centred,
        # Of three nothing is left once rows and columns are centred.
        4,
        -1.0,
        'linear CKA, debiased: the unbiased HSIC of Song et al. 2012 in the place of each HSIC (Nguyen, '
        'Raghu and Kornblith 2020), tokens flattened; about 0 for independent features; 0 where features are '
        'constant',
    ),
    'biased': Estimator(
        lambda k: k,
        # Two centred examples are v and -v, whatever the features: their CKA is always 1.
        3,
        0.0,
        'linear CKA, the biased estimator from HSIC: |Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|), Frobenius norms, '
        'features centred over examples, tokens flattened (Kornblith et al. 2019); far above 0 for '
        'independent features if they are many; 0 where features are constant',
    ),
}


def alignment(k, ell, estimator: Estimator) -> float:
    """CKA of two Gram matrices; 0 where one of them is all zeros.

    Args:
      k, ell: [n, n], as `gram` gives them, of the same examples.
      estimator: of ESTIMATORS.
    """
    if k.shape != ell.shape:
        raise ValueError(f'Grams {k.shape} and {ell.shape} are not of the same examples.')
    k, ell = estimator.centre(k), estimator.centre(ell)
    norms = np.linalg.norm(k) * np.linalg.norm(ell)
    return float(np.clip(np.sum(k * ell) / norms, estimator.lowest, 1.0)) if norms else 0.0


def linear_cka(x, y, estimator: str = 'debiased') -> float:
    """Linear CKA of two representations of the same examples, HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)).

    `biased` is |Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|) with Frobenius norms, Xc and Yc centred over examples
    (Kornblith et al. 2019, section 3). With few examples and many features it is far above 0 even for
    representations that have nothing in common, and more so the more features there are. `debiased` has the
    unbiased estimator of Song et al. 2012 in the place of each HSIC, as Nguyen, Raghu and Kornblith 2020:
    about 0 for those, and sometimes below. Both are computed from the Gram matrices of the examples, whose
    size does not depend on the number of features.

    Args:
      x: [n, ...]
      y: [n, ...], of the same examples, 4 or more (biased: 2).
      estimator: a name of ESTIMATORS.

    Returns:
      At most 1, which it is for representations that are alike but for a rotation, a scale and a shift; 0
      where one of them is the same for all examples.

    Raises:
      ValueError: too few examples, another number of them in y, or numbers that are not finite.
    """
    return alignment(gram(x), gram(y), ESTIMATORS[estimator])
