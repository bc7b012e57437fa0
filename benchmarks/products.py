"""What this machine can do: the rate of one large product, with which speeds are compared."""

import time

import jax

from td_jax.devices import flops


def rate(repeats: int) -> float:
    """Operations per second of one product of two square float32 matrices; the fastest of some."""
    return flops.measure_rate('float32', 3 * repeats)


def describe(of_product: float) -> str:
    """The devices of this machine and a rate by `rate`, as text."""
    kind = f'{jax.device_count()} {jax.devices()[0].device_kind} device(s)'
    return f'{kind}; one {flops.SIDE}³ product: {of_product / 1e9:.0f} GFLOP/s'


def seconds(function) -> float:
    """How long `function()` takes until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began
