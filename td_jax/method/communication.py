"""The communication encoder and decoder (arXiv 2310.03188, section 3.1); td_jax.losses has the conversation.

A hidden state is the pair (s, e) of a lower and a higher array, batch-first. Their concatenation {s; e} on
the feature axis is never built where a sum over both parts does the same.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Standard deviation of a standard normal that is cut off at -2 and 2.
TRUNCATED = 0.87962566103423978


class NormalizedDense(nn.Module):
    """LayerNorm and Dense in one, Dense(LayerNorm({a; b; ...})), without joining the parts.

    With the mean and the standard deviation of each example over the joined width, the joined kernels W, and
    the means w of their columns,

        y = (x - mean) / std @ W + bias = (sum over parts of a @ (W_a - w)) / std + bias

    because a kernel whose columns have the mean 0 ignores the mean of x. The normalised input, the widest
    array of a conversation, is therefore never written; its memory traffic would cost as much as the
    products. The norm has no scale and bias of its own, since those of the Dense do the same.

    The variance takes a second pass over the input. In one pass, the mean square minus the squared mean would
    be pure rounding error for values near 1000.

    Rounded to bfloat16, the columns of a kernel have means that are not exactly 0. What they add to the
    product where the input's mean is large is subtracted again. The initial kernel has the variance 1 /
    width, as that of a Dense on the joined input (LeCun).

    Attributes:
      features: width of the result.
      epsilon: added to the variance.
      dtype: of the product and the result; statistics and parameters are float32.
    """

    features: int
    epsilon: float = 1e-6
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, *parts):
        width = sum(part.shape[-1] for part in parts)
        # Of the joined width, not that of a part.
        kernel_init = nn.initializers.truncated_normal(width**-0.5 / TRUNCATED)
        kernels = [
            self.param(f'kernel_{i}', kernel_init, (part.shape[-1], self.features), jnp.float32)
            for i, part in enumerate(parts)
        ]
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        # Statistics in float32, whatever the parts are in.
        wide = [part.astype(jnp.float32) for part in parts]
        mean = sum(part.sum(axis=-1, keepdims=True) for part in wide) / width
        # The sum of squares is least about the mean, and so has no gradient by it.
        center = jax.lax.stop_gradient(mean)
        variance = sum(jnp.square(part - center).sum(axis=-1, keepdims=True) for part in wide) / width
        scale = jax.lax.rsqrt(variance + self.epsilon)
        column_means = sum(kernel.sum(axis=0, keepdims=True) for kernel in kernels) / width
        rounded = [(kernel - column_means).astype(self.dtype) for kernel in kernels]
        product = sum(part.astype(self.dtype) @ kernel for part, kernel in zip(parts, rounded, strict=True))
        row = (1,) * (product.ndim - 1) + (self.features,)
        column_sums = sum(kernel.astype(jnp.float32).sum(axis=0) for kernel in rounded).reshape(row)
        return (scale * (product - mean * column_sums) + bias.reshape(row)).astype(self.dtype)


class Encoder(nn.Module):
    """E: {s; e} -> m, as LayerNorm, Dense, relu, dropout, Dense.

    It acts on the last axis: states [batch, tokens, width] make a message [batch, tokens, message].

    Attributes:
      hidden: width of the hidden layer.
      message: width of the message.
      dropout: rate after the hidden layer.
      dtype: of the computation.
    """

    hidden: int
    message: int
    dropout: float
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, s, e, deterministic=True):
        x = jax.nn.relu(NormalizedDense(self.hidden, dtype=self.dtype, name='hidden')(s, e))
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return nn.Dense(self.message, dtype=self.dtype, name='message')(x)


class Decoder(nn.Module):
    """D: m -> {s'; e'}, as LayerNorm, Dense, relu, dropout, Dense.

    `m` may come in parts, which count as their concatenation. The last Dense is split in two, one for each
    part of the state, so that the compiler drops the product for e' where only s' is read.

    Attributes:
      hidden: width of the hidden layer.
      lower: width of s'.
      upper: width of e'.
      dropout: rate after the hidden layer.
      dtype: of the computation.
    """

    hidden: int
    lower: int
    upper: int
    dropout: float
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, *m, deterministic=True):
        x = jax.nn.relu(NormalizedDense(self.hidden, dtype=self.dtype, name='hidden')(*m))
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        lower = nn.Dense(self.lower, dtype=self.dtype, name='lower')
        upper = nn.Dense(self.upper, dtype=self.dtype, name='upper')
        return lower(x), upper(x)
