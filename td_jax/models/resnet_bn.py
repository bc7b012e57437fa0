"""ResNet with BatchNorm (He et al. 2015) as a frozen teacher, cut in three at any stage.

    lower: image -> root, stages before the split -> s      [batch, rows, columns, width]
    upper: s -> stages from the split on -> e               [batch, rows, columns, width]
    head:  e -> mean over the grid, Dense -> y              [batch, outputs]

The stride of a unit is that of its 3 by 3 convolution. The BatchNorm after each convolution is folded into
its kernel and bias, which is the same function as long as the model is not trained.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from td_jax.errors import UserError
from td_jax.models import base
from td_jax.models.efficientnet import Conv


class Sizes(NamedTuple):
    """The sizes of a variant."""

    units: tuple[int, ...]  # number of units in each stage
    # True: a unit has three convolutions, the last four times as wide as the stage. False: it has two.
    bottleneck: bool
    wider: int = 1  # factor of the width inside a bottleneck (Zagoruyko and Komodakis 2016)


# Table 1 of the paper, and others by the same rule.
VARIANTS = {
    'resnet18': Sizes((2, 2, 2, 2), False),
    'resnet34': Sizes((3, 4, 6, 3), False),
    'resnet26': Sizes((2, 2, 2, 2), True),
    'resnet50': Sizes((3, 4, 6, 3), True),
    'resnet101': Sizes((3, 4, 23, 3), True),
    'resnet152': Sizes((3, 8, 36, 3), True),
    'wide_resnet50_2': Sizes((3, 4, 6, 3), True, 2),
    'wide_resnet101_2': Sizes((3, 4, 23, 3), True, 2),
}
ROOT = 64  # Width of the first convolution, and of the first stage.


class Unit(nn.Module):
    """relu(x + convolutions of x); where the width or the side changes, x is projected.

    [batch, rows, columns, c] -> [batch, rows / stride, columns / stride, width, or four times that]
    """

    width: int
    stride: int
    sizes: Sizes
    dtype: str

    @nn.compact
    def __call__(self, x):
        inner, out = self.width * self.sizes.wider, self.width * (4 if self.sizes.bottleneck else 1)
        if self.sizes.bottleneck:
            layers = (inner, 1, 1), (inner, 3, self.stride), (out, 1, 1)
        else:
            layers = (self.width, 3, self.stride), (out, 3, 1)
        y = x
        for i, (features, side, stride) in enumerate(layers):
            # No relu on the input: a decoded state may be negative.
            y = Conv(features, side, stride, padding='symmetric', dtype=self.dtype, name=f'conv_{i}')(
                jax.nn.relu(y) if i else y
            )
        if self.stride != 1 or x.shape[-1] != out:
            x = Conv(out, 1, self.stride, padding='symmetric', dtype=self.dtype, name='projection')(x)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """The whole model.

    Attributes:
      sizes: of the variant.
      num_outputs: width of the prediction.
      split: number of stages in `lower`, from 0 (the root alone) to all.
      dtype: of the computation; parameters, means and logits are float32.
    """

    sizes: Sizes
    num_outputs: int
    split: int
    dtype: str

    def setup(self):
        self.root = Conv(ROOT, 7, 2, padding='symmetric', dtype=self.dtype)
        self.stages = [
            [
                Unit(ROOT * 2**i, 2 if i and not j else 1, self.sizes, self.dtype, name=f'stage_{i}_unit_{j}')
                for j in range(count)
            ]
            for i, count in enumerate(self.sizes.units)
        ]
        self.head_layer = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)

    def run(self, stages, x):
        for unit in (unit for stage in stages for unit in stage):
            x = unit(x)
        return x

    def lower(self, inputs, deterministic=True):
        """{'image': [batch, height, width, 3]} -> s, [batch, rows, columns, width]."""
        x = jax.nn.relu(self.root(inputs['image']))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return self.run(self.stages[: self.split], x)

    def upper(self, s, deterministic=True):
        """s -> e, [batch, rows, columns, width]."""
        return self.run(self.stages[self.split :], s.astype(self.dtype))

    def head(self, e):
        """e -> y, [batch, num_outputs], in float32."""
        return self.head_layer(base.read_by_head(e))

    def __call__(self, inputs, deterministic=True):
        return self.head(self.upper(self.lower(inputs, deterministic), deterministic))


def sizes_of_variant(variant: str) -> Sizes:
    """The sizes of a name of VARIANTS.

    Raises:
      UserError: an unknown name.
    """
    if variant not in VARIANTS:
        known = ', '.join(VARIANTS)
        raise UserError(f'model.variant {variant!r} is no ResNet with BatchNorm. Known: {known}.')
    return VARIANTS[variant]


def build(config, vocabularies: dict[str, int], num_outputs: int, dtype: str) -> base.Model:
    """Builds a ResNet with BatchNorm from a model config.

    Args:
      config: the fields of td_jax.configs.common.model_config.
      vocabularies: empty; a ResNet reads images.
      num_outputs: width of the prediction.
      dtype: of the computation.

    Raises:
      UserError: an unknown variant, a split beyond the last stage, or data other than images.
    """
    base.check_reads_images('resnet_bn', vocabularies)
    sizes = sizes_of_variant(config.variant)
    base.check_split_of_stages(config.split, len(sizes.units))
    return base.from_module(ResNet(sizes, num_outputs, config.split, dtype))
