"""Linear CKA, a similarity of two representations of the same examples (Kornblith et al. 2019)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


def centred_gram(x) -> np.ndarray:
    """The Gram matrix Xc Xc^T of features centred over examples, in float64 up to a scale.

    A feature that varies by no more than the rounding of its type counts as constant.

    Args:
      x: [n, ...], one row per example; other axes are flattened.

    Returns:
      [n, n]; zeros if every feature is constant

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
    # CKA does not depend on the scale, but fourth powers of very small or large numbers underflow or
    # overflow in float64.
    centred /= abs(centred).max() or 1.0
    return centred @ centred.T


def u_centre(k) -> np.ndarray:
    """U-centres a Gram matrix: removes the diagonal and the means of rows and columns.

        K_ij - sum_l K_il / (n - 2) - sum_l K_lj / (n - 2) + sum_kl K_kl / ((n - 1) (n - 2)),  0 for i = j

    with sums that leave out the diagonal. The sum of the products of two of them, over n (n - 3), is the
    unbiased estimator of HSIC of Song et al. 2012 (Székely and Rizzo 2014 write it so).

    Args:
      k: [n, n], of n >= 4 examples.

    Returns:
      [n, n]; zeros if only rounding errors are left, as if only one example differs from the others
    """
    n = len(k)
    off_diagonal = k - np.diag(np.diag(k))
    sums = off_diagonal.sum(axis=1)
    centred = off_diagonal - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    rounding = n * n * np.finfo(np.float64).eps
    return centred if np.linalg.norm(centred) > rounding * np.linalg.norm(k) else np.zeros_like(k)


class Estimator(NamedTuple):
    """An estimator of CKA: <C(K), C(L)> / (|C(K)| |C(L)|) of Gram matrices K and L."""

    centre: Callable[[np.ndarray], np.ndarray]  # C, of a Gram matrix whose features are centred
    fewest: int  # examples for a meaningful value
    lowest: float  # possible value
    text: str


ESTIMATORS = {
    'debiased': Estimator(
        u_centre,
        # With three examples, centring rows and columns leaves zeros.
        4,
        -1.0,
        'linear CKA, debiased: the unbiased HSIC of Song et al. 2012 in the place of each HSIC (Nguyen, '
        'Raghu and Kornblith 2020), tokens flattened; about 0 for independent features; 0 where features are '
        'constant',
    ),
    'biased': Estimator(
        lambda k: k,
        # Two centred examples are v and -v, so that their CKA is always 1.
        3,
        0.0,
        'linear CKA, the biased estimator from HSIC: |Yc^T Xc|^2 / (|Xc^T Xc| |Yc^T Yc|), Frobenius norms, '
        'features centred over examples, tokens flattened (Kornblith et al. 2019); far above 0 for '
        'independent features if they are many; 0 where features are constant',
    ),
}


def alignment(k, ell, estimator: Estimator) -> float:
    """CKA of two Gram matrices; 0 if one of them is zero.

    Args:
      k, ell: [n, n], by `centred_gram`, of the same examples.
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
    independent representations. `debiased` uses the unbiased estimator of Song et al. 2012 for each HSIC,
    like Nguyen, Raghu and Kornblith 2020: about 0 for these, and sometimes below. Both are computed from the
    Gram matrices of the examples, whose size does not depend on the number of features.

    Args:
      x: [n, ...]
      y: [n, ...], of the same examples, 4 or more (biased: 2).
      estimator: a name of ESTIMATORS.

    Returns:
      at most 1, for representations that are equal up to rotation, scale and shift; 0 if one of them is
      constant over examples

    Raises:
      ValueError: too few examples, different numbers of examples, or numbers that are not finite.
    """
    return alignment(centred_gram(x), centred_gram(y), ESTIMATORS[estimator])
