"""Vision Transformer (Dosovitskiy et al. 2020), cut in three at any block.

    lower: image -> patches, class token, positions, blocks before the split -> s  [batch, tokens, width]
    upper: s -> blocks from the split on, final LayerNorm -> e                     [batch, tokens, width]
    head:  e -> class token, pre-logits if there are any, Dense -> y               [batch, outputs]

The class token is token 0; registers (Darcet et al. 2023), if there are any, stand between it and the
patches. Blocks are pre-norm, as in the paper's Figure 1.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from td_jax.devices.remat import POLICIES
from td_jax.errors import UserError
from td_jax.models import base

# 'gelu_tanh' is what google-research/vision_transformer computes, 'gelu' what Hugging Face calls so.
ACTIVATIONS = {
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'gelu': functools.partial(nn.gelu, approximate=False),
}


# The fast variance, mean square minus squared mean, is pure rounding error for numbers far from 0.
LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)


def _class(e, registers):
    return base.read_by_head(e)


def _class_and_mean(e, registers):
    patches = e[:, 1 + registers :].mean(axis=1, dtype=jnp.float32)
    return jnp.concatenate([base.read_by_head(e).astype(jnp.float32), patches], axis=-1)


def _class_and_register(e, registers):
    return e[:, :2].reshape(e.shape[0], -1)


# name -> f(e, registers) -> what a head reads of a higher hidden state, [batch, width] or twice as wide.
# DINOv2's linear head reads the second. DeiT has two heads, on the class and the distillation token, and
# predicts their mean; the third is what both read.
POOLINGS = {'class': _class, 'class_and_mean': _class_and_mean, 'class_and_register': _class_and_register}


class Sizes(NamedTuple):
    """The sizes of a variant, except for its patches."""

    width: int
    layers: int
    mlp: int
    heads: int


# Table 1 of the ViT paper; Ti and S are those of DeiT (Touvron et al. 2020).
VARIANTS = {
    'Ti': Sizes(192, 12, 768, 3),
    'S': Sizes(384, 12, 1536, 6),
    'B': Sizes(768, 12, 3072, 12),
    'L': Sizes(1024, 24, 4096, 16),
}
PATCHES = (8, 14, 16, 32)


def attend(query, key, value):
    """Attention with a softmax in float32 and both products in the dtype of the arguments.

    flax.linen.dot_product_attention would multiply by float32 weights and keep their gradient in float32.

    Args:
      query, key, value: [batch, tokens, heads, features].

    Returns:
      [batch, tokens, heads, features]
    """
    weights = nn.dot_product_attention_weights(query, key, force_fp32_for_softmax=True)
    return jnp.einsum('...hqk,...khd->...qhd', weights.astype(value.dtype), value)


class Block(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)). [batch, tokens, width] -> the same."""

    sizes: Sizes
    dropout: float
    activation: str
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x, deterministic):
        norm = functools.partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dropout = nn.Dropout(self.dropout)
        kernel_init = nn.initializers.xavier_uniform()
        y = nn.MultiHeadDotProductAttention(
            num_heads=self.sizes.heads,
            kernel_init=kernel_init,
            dtype=self.dtype,
            attention_fn=attend,
            name='attention',
        )(norm(name='attention_norm')(x))
        x = x + dropout(y, deterministic=deterministic)
        dense = functools.partial(
            nn.Dense, kernel_init=kernel_init, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype
        )
        y = dense(self.sizes.mlp, name='mlp_in')(norm(name='mlp_norm')(x))
        y = dropout(ACTIVATIONS[self.activation](y), deterministic=deterministic)
        y = dense(self.sizes.width, name='mlp_out')(y)
        return x + dropout(y, deterministic=deterministic)


class ViT(nn.Module):
    """The whole model.

    Attributes:
      sizes: of the variant.
      patch: side of a patch in pixels.
      num_outputs: width of the prediction.
      split: number of blocks in `lower`, from 0 to all.
      dropout: rate after the position embedding and in every block.
      activation: a name of ACTIVATIONS.
      epsilon: of every LayerNorm.
      pre_logits: whether a Dense with tanh stands before the head.
      registers: tokens between the class token and the patches.
      pooling: what the head reads, a name of POOLINGS.
      remat_policy: what of a block is saved for the gradient, a name of remat.POLICIES.
      dtype: of the computation; parameters, LayerNorm statistics, softmax and logits are float32.
    """

    sizes: Sizes
    patch: int
    num_outputs: int
    split: int
    dropout: float
    activation: str
    epsilon: float
    pre_logits: bool
    registers: int
    pooling: str
    remat_policy: str
    dtype: str

    def setup(self):
        self.embedding = nn.Dense(self.sizes.width, dtype=self.dtype)
        kind = Block
        if self.remat_policy != 'everything_saveable':
            # Argument 2 of Block.__call__, itself being 0, is a bool of Python.
            kind = nn.remat(Block, policy=POLICIES[self.remat_policy], static_argnums=(2,))
        block = functools.partial(
            kind,
            sizes=self.sizes,
            dropout=self.dropout,
            activation=self.activation,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        self.blocks = [block(name=f'block_{i}') for i in range(self.sizes.layers)]
        self.norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.dropout_layer = nn.Dropout(self.dropout)
        self.pre_logits_layer = nn.Dense(self.sizes.width) if self.pre_logits else None
        self.head_layer = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)

    @nn.compact
    def embed(self, images, deterministic):
        """[batch, height, width, 3] -> [batch, 1 + registers + patches, width]."""
        x = self.embedding(cut_patches(images, self.patch).astype(self.dtype))
        batch, count, width = x.shape
        cls = self.param('cls', nn.initializers.zeros, (1, 1, width), jnp.float32)
        initial = nn.initializers.normal(0.02)
        position = self.param('pos_embedding', initial, (1, 1 + count, width), jnp.float32)
        cls = jnp.broadcast_to(cls.astype(x.dtype), (batch, 1, width))
        x = jnp.concatenate([cls, x], axis=1) + position.astype(x.dtype)
        if self.registers:
            tokens = self.param('register_tokens', initial, (1, self.registers, width), jnp.float32)
            tokens = jnp.broadcast_to(tokens.astype(x.dtype), (batch, self.registers, width))
            x = jnp.concatenate([x[:, :1], tokens, x[:, 1:]], axis=1)
        return self.dropout_layer(x, deterministic=deterministic)

    def run(self, blocks, x, deterministic):
        for block in blocks:
            x = block(x, deterministic)
        return x

    def lower(self, inputs, deterministic=True):
        """{'image': [batch, height, width, 3]} -> s, [batch, tokens, width]."""
        x = self.embed(inputs['image'], deterministic)
        return self.run(self.blocks[: self.split], x, deterministic)

    def upper(self, s, deterministic=True):
        """s -> e, [batch, tokens, width]."""
        return self.norm(self.run(self.blocks[self.split :], s.astype(self.dtype), deterministic))

    def head(self, e):
        """e -> y, [batch, num_outputs], in float32."""
        # [batch, tokens, width] -> [batch, width], or twice as wide
        x = POOLINGS[self.pooling](e, self.registers).astype(jnp.float32)
        if self.pre_logits_layer is not None:
            x = jnp.tanh(self.pre_logits_layer(x))
        return self.head_layer(x)

    def __call__(self, inputs, deterministic=True):
        return self.head(self.upper(self.lower(inputs, deterministic), deterministic))


def cut_patches(images, patch: int):
    """Cuts images into patches in row order, each flattened as [row, column, channel].

    A Dense on them equals the paper's strided convolution; its kernel is [patch, patch, 3, width] with the
    first three axes joined.

    Args:
      images: [batch, height, width, channels].
      patch: side of a patch.

    Returns:
      [batch, patches, patch * patch * channels]

    Raises:
      ValueError: a side that the patch does not divide.
    """
    batch, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ValueError(f'Images of {height}x{width} pixels cannot be cut into patches of {patch}.')
    rows, columns = height // patch, width // patch
    x = images.reshape(batch, rows, patch, columns, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [batch, rows, columns, patch, patch, channels]
    return x.reshape(batch, rows * columns, patch * patch * channels)


def sizes_of(config) -> tuple[Sizes, int]:
    """The sizes and the patch of a model config: those of its variant, unless the config has its own.

    Raises:
      UserError: an unknown variant, or heads that do not divide the width.
    """
    name, _, patch = config.variant.partition('/')
    if name not in VARIANTS or patch not in map(str, PATCHES):
        patches = ', '.join(map(str, PATCHES))
        raise UserError(
            f'model.variant {config.variant!r} is not known. Known: {", ".join(VARIANTS)}, with a slash and '
            f'a patch of {patches} (other sizes: model.width, .layers, .mlp, .heads, .patch).'
        )
    changes = {field: config[field] for field in Sizes._fields if config[field]}
    sizes = VARIANTS[name]._replace(**changes)
    if sizes.width % sizes.heads:
        raise UserError(f'model.heads is {sizes.heads}, which does not divide the width, {sizes.width}.')
    return sizes, config.patch or int(patch)


def build(config, vocabularies: dict[str, int], num_outputs: int, dtype: str) -> base.Model:
    """Builds a ViT from a model config.

    Args:
      config: the fields of `td_jax.configs.common.model_config`.
      vocabularies: empty; a ViT reads images.
      num_outputs: width of the prediction.
      dtype: of the computation.

    Raises:
      UserError: sizes that do not fit each other, or data other than images.
    """
    base.check_reads_images('vit', vocabularies)
    sizes, patch = sizes_of(config)
    if config.split > sizes.layers:
        raise UserError(
            f'model.split is {config.split}; with {sizes.layers} blocks it is between 0 and {sizes.layers}.'
        )
    if config.pooling == 'class_and_register' and not config.registers:
        raise UserError('model.pooling is class_and_register, but model.registers is 0; set it to 1 or more.')
    module = ViT(
        sizes=sizes,
        patch=patch,
        num_outputs=num_outputs,
        split=config.split,
        dropout=config.dropout,
        activation=config.activation,
        epsilon=config.epsilon,
        pre_logits=config.pre_logits,
        registers=config.registers,
        pooling=config.pooling,
        remat_policy=config.remat_policy,
        dtype=dtype,
    )
    return base.from_module(module, config.registers)
