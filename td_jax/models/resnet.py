"""ResNet without batch statistics (BiT's ResNet-v2, Kolesnikov et al. 2019), cut in three at any stage.

    lower: image -> root, stages before the split -> s                     [batch, rows, columns, width]
    upper: s -> stages from the split on, final GroupNorm and relu -> e    [batch, rows, columns, width]
    head:  e -> mean over the grid, Dense -> y                             [batch, outputs]

Units are pre-activation (He et al. 2016): norm and relu come before a convolution. Norms are over groups of
channels of one example (Wu and He 2018), and kernels are standardised (Qiao et al. 2019), so that there is no
state besides the parameters and no example depends on others.
"""

import math
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from td_jax.devices.remat import POLICIES
from td_jax.errors import UserError
from td_jax.models import base

# Added to the variance in each GroupNorm, and to that of a kernel.
NORM_EPSILON, KERNEL_EPSILON = 1e-5, 1e-10


class Sizes(NamedTuple):
    """The sizes of a variant."""

    width: int  # of the root
    units: tuple[int, ...]  # number of units in each stage
    # True: a unit has three convolutions, the first two a fourth as wide as the last. The root is 7 by 7 and
    # is followed by a pooling; together they leave a fourth of the image's side.
    # False: a unit has two convolutions, and the root is 3 by 3.
    bottleneck: bool


# depth -> units of each stage: for images of 224 pixels and more (He et al. 2015, Table 1), and for the 32
# pixels of CIFAR (section 4.2 there), three stages of n units of two convolutions, 6 n + 2 layers.
BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SMALL = {6 * n + 2: (n,) * 3 for n in (1, 2, 3, 5, 7, 9, 18)}


def count_groups(width: int) -> int:
    """The number of groups of a norm over `width` channels: 32, or fewer, so that none has one channel."""
    return math.gcd(32, width // 2) if width % 2 == 0 else 1


class StandardizedConv(nn.Module):
    """A convolution whose kernel has mean 0 and variance 1 for each output. [..., c] -> [..., features].

    The image is padded with zeros by half the kernel's side all around.
    """

    features: int
    side: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x):
        shape = self.side, self.side, x.shape[-1], self.features
        kernel = self.param('kernel', nn.initializers.lecun_normal(), shape, jnp.float32)
        mean = kernel.mean(axis=(0, 1, 2), keepdims=True)
        variance = kernel.var(axis=(0, 1, 2), keepdims=True)
        kernel = (kernel - mean) * jax.lax.rsqrt(variance + KERNEL_EPSILON)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride,) * 2,
            (((self.side // 2),) * 2,) * 2,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )


class Norm(nn.Module):
    """relu(GroupNorm(x)), statistics in float32."""

    dtype: str

    @nn.compact
    def __call__(self, x):
        norm = nn.GroupNorm(
            num_groups=count_groups(x.shape[-1]),
            epsilon=NORM_EPSILON,
            dtype=self.dtype,
            use_fast_variance=False,
            name='norm',
        )
        return jax.nn.relu(norm(x))


class Unit(nn.Module):
    """x + convolutions of relu(norm(x)); where the width or the side changes, x is projected."""

    width: int
    stride: int
    bottleneck: bool
    dtype: str

    @nn.compact
    def __call__(self, x):
        # (width, side, stride) of each convolution.
        inner = self.width // 4
        layers = (
            ((inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1))
            if self.bottleneck
            else ((self.width, 3, self.stride), (self.width, 3, 1))
        )
        y = Norm(self.dtype, name='norm_0')(x)
        if self.stride > 1 or x.shape[-1] != self.width:
            x = StandardizedConv(self.width, 1, self.stride, self.dtype, name='projection')(y)
        for i, layer in enumerate(layers):
            y = Norm(self.dtype, name=f'norm_{i}')(y) if i else y
            y = StandardizedConv(*layer, self.dtype, name=f'conv_{i}')(y)
        return x + y


class ResNet(nn.Module):
    """The whole model.

    Attributes:
      sizes: of the variant.
      num_outputs: width of the prediction.
      split: number of stages in `lower`, from 0 (the root alone) to all.
      remat_policy: what of a unit is saved for the gradient, a name of remat.POLICIES.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    sizes: Sizes
    num_outputs: int
    split: int
    remat_policy: str
    dtype: str

    def setup(self):
        sizes = self.sizes
        kind = Unit
        if self.remat_policy != 'everything_saveable':
            kind = nn.remat(Unit, policy=POLICIES[self.remat_policy])
        side, stride = (7, 2) if sizes.bottleneck else (3, 1)
        self.root = StandardizedConv(sizes.width, side, stride, self.dtype)
        self.stages = [
            [
                kind(
                    sizes.width * 2**i * (4 if sizes.bottleneck else 1),
                    2 if i and not j else 1,
                    sizes.bottleneck,
                    self.dtype,
                    name=f'stage_{i}_unit_{j}',
                )
                for j in range(count)
            ]
            for i, count in enumerate(sizes.units)
        ]
        self.final_norm = Norm(self.dtype)
        self.head_layer = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)

    def run(self, stages, x):
        for unit in (unit for stage in stages for unit in stage):
            x = unit(x)
        return x

    def lower(self, inputs, deterministic=True):
        """{'image': [batch, height, width, 3]} -> s, [batch, rows, columns, width]."""
        x = inputs['image']
        if x.ndim != 4:
            raise ValueError(f'A ResNet reads images [batch, height, width, 3], not an array of {x.shape}.')
        x = self.root(x)
        if self.sizes.bottleneck:
            # Padded with zeros; a pooling's own padding is minus infinity.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nn.max_pool(x, (3, 3), (2, 2))
        return self.run(self.stages[: self.split], x)

    def upper(self, s, deterministic=True):
        """s -> e, [batch, rows, columns, width]."""
        return self.final_norm(self.run(self.stages[self.split :], s.astype(self.dtype)))

    def head(self, e):
        """e -> y, [batch, num_outputs], in float32."""
        return self.head_layer(base.read_by_head(e))

    def __call__(self, inputs, deterministic=True):
        return self.head(self.upper(self.lower(inputs, deterministic), deterministic))


def sizes_of(config) -> Sizes:
    """The sizes of a model config: those of its variant, unless the config has its own width.

    Raises:
      UserError: an unknown variant.
    """
    match = re.fullmatch(r'R(\d{1,3})x([1-9]\d?)', config.variant)
    depth = int(match[1]) if match else 0
    if depth not in BOTTLENECKS and depth not in SMALL:
        depths = ', '.join(map(str, sorted({*SMALL, *BOTTLENECKS} - {50})))
        raise UserError(
            f'model.variant {config.variant!r} is no ResNet. Known: R, a depth, x and a factor of the width, '
            f'such as R50x1; depths: 50, {depths}.'
        )
    is_deep = depth in BOTTLENECKS
    width = config.width or (64 if is_deep else 16) * int(match[2])
    return Sizes(width, BOTTLENECKS[depth] if is_deep else SMALL[depth], is_deep)


def build(config, vocabularies: dict[str, int], num_outputs: int, dtype: str) -> base.Model:
    """Builds a ResNet from a model config.

    Args:
      config: the fields of `td_jax.configs.common.model_config`.
      vocabularies: empty; a ResNet reads images.
      num_outputs: width of the prediction.
      dtype: of the computation.

    Raises:
      UserError: an unknown variant, a split beyond the last stage, or data other than images.
    """
    base.check_reads_images('resnet', vocabularies)
    sizes = sizes_of(config)
    base.check_split_of_stages(config.split, len(sizes.units))
    module = ResNet(
        sizes=sizes,
        num_outputs=num_outputs,
        split=config.split,
        remat_policy=config.remat_policy,
        dtype=dtype,
    )
    return base.from_module(module)
