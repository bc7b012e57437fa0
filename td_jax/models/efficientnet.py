"""EfficientNet (Tan and Le 2019) and EfficientNet-lite as frozen teachers, cut in three at any stage.

    lower: image -> stem, stages before the split -> s                     [batch, rows, columns, width]
    upper: s -> stages from the split on, the last convolution -> e        [batch, rows, columns, width]
    head:  e -> mean over the grid, Dense -> y                             [batch, outputs]

A stage is a sequence of inverted residuals (Sandler et al. 2018). The BatchNorm after each convolution is
folded into its kernel and bias, which is the same function as long as the model is not trained.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from td_jax.devices import convolution
from td_jax.errors import UserError
from td_jax.models import base

ACTIVATIONS = {'relu6': jax.nn.relu6, 'silu': jax.nn.silu}
# Table 1 of the paper: (blocks, side of a kernel, stride, expansion, width) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, LAST = 32, 1280
# variant -> (factor of widths, factor of depths). A lite variant keeps the stem, the first and the last stage
# and the last convolution as they are, uses relu6, and has no squeeze-and-excitation.
FACTORS = {
    **{'b0': (1.0, 1.0), 'b1': (1.0, 1.1), 'b2': (1.1, 1.2), 'b3': (1.2, 1.4), 'b4': (1.4, 1.8)},
    **{'b5': (1.6, 2.2), 'b6': (1.8, 2.6), 'b7': (2.0, 3.1)},
    **{
        'lite0': (1.0, 1.0),
        'lite1': (1.0, 1.1),
        'lite2': (1.1, 1.2),
        'lite3': (1.2, 1.4),
        'lite4': (1.4, 1.8),
    },
}
# Padding of a convolution, by name: 'same' is TensorFlow's, with an odd row added at the end; 'symmetric'
# adds half a kernel on every side.
PADDINGS = ('same', 'symmetric')


class Sizes(NamedTuple):
    """The sizes of a variant."""

    stem: int  # width after the first convolution
    widths: tuple[int, ...]  # of each stage
    depths: tuple[int, ...]  # number of blocks in each stage
    last: int  # width of the last convolution
    is_lite: bool


def round_width(width: float, divisor: int = 8) -> int:
    """Rounds a width to the nearest multiple of a divisor that is at most a tenth smaller."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def sizes_of_variant(variant: str) -> Sizes:
    """The sizes of a name of FACTORS.

    Raises:
      UserError: an unknown name.
    """
    if variant not in FACTORS:
        raise UserError(f'model.variant {variant!r} is no EfficientNet. Known: {", ".join(FACTORS)}.')
    width, depth = FACTORS[variant]
    is_lite = variant.startswith('lite')
    depths = [
        blocks if is_lite and i in (0, len(STAGES) - 1) else math.ceil(blocks * depth)
        for i, (blocks, *_) in enumerate(STAGES)
    ]
    widths = tuple(round_width(stage[-1] * width) for stage in STAGES)
    stem, last = (STEM, LAST) if is_lite else (round_width(STEM * width), round_width(LAST * width))
    return Sizes(stem=stem, widths=widths, depths=tuple(depths), last=last, is_lite=is_lite)


class Conv(nn.Module):
    """A convolution with a bias. [batch, rows, columns, c] -> [..., features]."""

    features: int
    side: int
    stride: int
    padding: str
    dtype: str
    is_depthwise: bool = False

    @nn.compact
    def __call__(self, x):
        half = self.side // 2
        padding = 'SAME' if self.padding == 'same' else ((half, half),) * 2
        return nn.Conv(
            self.features,
            (self.side, self.side),
            (self.stride, self.stride),
            padding,
            feature_group_count=x.shape[-1] if self.is_depthwise else 1,
            dtype=self.dtype,
            conv_general_dilated=_depthwise if self.is_depthwise else None,
            name='conv',
        )(x)


def _depthwise(x, kernel, strides, padding, **options):
    """What nn.Conv calls in place of jax.lax.conv_general_dilated; its other options have their defaults."""
    return convolution.depthwise(x, kernel, strides, padding)


class Block(nn.Module):
    """An inverted residual: expand, convolve by channel, project; x is added where the shapes are equal."""

    width: int
    side: int
    stride: int
    expansion: int
    squeeze_width: int  # of the squeeze-and-excitation; 0 for none
    activation: str
    padding: str
    dtype: str

    @nn.compact
    def __call__(self, x):
        act, y = ACTIVATIONS[self.activation], x
        wide = x.shape[-1] * self.expansion
        if self.expansion != 1:
            y = act(Conv(wide, 1, 1, padding=self.padding, dtype=self.dtype, name='expand')(y))
        y = Conv(
            wide,
            self.side,
            self.stride,
            padding=self.padding,
            dtype=self.dtype,
            is_depthwise=True,
            name='depthwise',
        )(y)
        y = act(y)
        if self.squeeze_width:
            mean = y.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(y.dtype)
            gate = act(nn.Dense(self.squeeze_width, dtype=self.dtype, name='squeeze')(mean))
            y = y * jax.nn.sigmoid(nn.Dense(wide, dtype=self.dtype, name='excite')(gate))
        y = Conv(self.width, 1, 1, padding=self.padding, dtype=self.dtype, name='project')(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.width else y


class EfficientNet(nn.Module):
    """The whole model.

    Attributes:
      sizes: of the variant.
      num_outputs: width of the prediction.
      split: number of stages in `lower`, from 0 (the stem alone) to all.
      padding: a name of PADDINGS.
      dtype: of the computation; parameters, means and logits are float32.
    """

    sizes: Sizes
    num_outputs: int
    split: int
    padding: str
    dtype: str

    def setup(self):
        sizes = self.sizes
        self.activation = 'relu6' if sizes.is_lite else 'silu'
        self.stem = Conv(sizes.stem, 3, 2, padding=self.padding, dtype=self.dtype)
        stages, input_width = [], sizes.stem
        for i, (_, side, stride, expansion, _) in enumerate(STAGES):
            blocks = []
            for j in range(sizes.depths[i]):
                # A fourth of a block's input.
                squeeze_width = 0 if sizes.is_lite else max(1, input_width // 4)
                blocks.append(
                    Block(
                        width=sizes.widths[i],
                        side=side,
                        stride=1 if j else stride,
                        expansion=expansion,
                        squeeze_width=squeeze_width,
                        activation=self.activation,
                        padding=self.padding,
                        dtype=self.dtype,
                        name=f'stage_{i}_block_{j}',
                    )
                )
                input_width = sizes.widths[i]
            stages.append(blocks)
        self.stages = stages
        self.last = Conv(sizes.last, 1, 1, padding=self.padding, dtype=self.dtype)
        self.head_layer = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)

    def run(self, stages, x):
        for block in (block for stage in stages for block in stage):
            x = block(x)
        return x

    def lower(self, inputs, deterministic=True):
        """{'image': [batch, height, width, 3]} -> s, [batch, rows, columns, width]."""
        x = ACTIVATIONS[self.activation](self.stem(inputs['image']))
        return self.run(self.stages[: self.split], x)

    def upper(self, s, deterministic=True):
        """s -> e, [batch, rows, columns, width]."""
        x = self.run(self.stages[self.split :], s.astype(self.dtype))
        return ACTIVATIONS[self.activation](self.last(x))

    def head(self, e):
        """e -> y, [batch, num_outputs], in float32."""
        return self.head_layer(base.read_by_head(e))

    def __call__(self, inputs, deterministic=True):
        return self.head(self.upper(self.lower(inputs, deterministic), deterministic))


def build(config, vocabularies: dict[str, int], num_outputs: int, dtype: str) -> base.Model:
    """Builds an EfficientNet from a model config.

    Args:
      config: the fields of td_jax.configs.common.model_config.
      vocabularies: empty; an EfficientNet reads images.
      num_outputs: width of the prediction.
      dtype: of the computation.

    Raises:
      UserError: an unknown variant, a split beyond the last stage, or data other than images.
    """
    base.check_reads_images('efficientnet', vocabularies)
    sizes = sizes_of_variant(config.variant)
    base.check_split_of_stages(config.split, len(STAGES))
    module = EfficientNet(
        sizes=sizes, num_outputs=num_outputs, split=config.split, padding=config.padding, dtype=dtype
    )
    return base.from_module(module)
