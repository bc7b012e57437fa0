"""How two models talk: encoders, decoders and the conversation itself.

Section 3.3 and Algorithm 1 of arXiv 2310.03188. A hidden state is the pair (s, e) of a lower and a
higher array, batch-first; their concatenation {s; e} on the feature axis is never built where a sum
over both parts does the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

State = tuple[jax.Array, jax.Array]
# Standard deviation of a standard normal that is cut off at -2 and 2.
TRUNCATED = 0.87962566103423978


class NormalizedDense(nn.Module):
    """LayerNorm and Dense in one: Dense(LayerNorm({a; b; ...})), of parts that are never joined.

    With mean and standard deviation of each example over the joined width, and W the joined kernels, whose
    columns have the means w,

        y = (x - mean) / std @ W + bias = (sum over parts of a @ (W_a - w)) / std + bias

    because what the mean adds to x, a column without a mean takes out again. So the normalised input, the
    widest array of a conversation, is never written: its memory traffic costs as much as the products. The
    norm has no scale and bias of its own; those of the Dense do the same.

    The variance takes a second pass over the input, after the mean: the mean square less the squared mean, in
    one, would be all rounding for numbers near 1000.

    A kernel that is rounded to bfloat16 has columns whose means are not quite 0, and an input whose mean is
    large would find them; what it adds by them is taken out of the product again. The initial kernel has the
    variance 1 / width, as a Dense's on the joined input has (LeCun).
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

    Acts on the last axis: for [batch, tokens, width] states a message is [batch, tokens, message].
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

    `m` may come in parts, whose concatenation is meant. The last Dense is two, one for each part of the
    state: the same function, but where only s' is read the compiler drops the other product.
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


class Speaker(NamedTuple):
    """One side of a conversation, its parameters bound. A key of None means no dropout.

    upper(s, key) -> e         interprets a lower hidden state with the model's own layers
    encode(s, e, key) -> m     speaks
    decode(m, key) -> (s, e)   listens
    """

    upper: Callable[..., jax.Array]
    encode: Callable[..., jax.Array]
    decode: Callable[..., State]


def distance(a: State, b: State) -> jax.Array:
    """d({s; e}, {s'; e'}): mean squared difference over everything but the batch axis.

    Args:
      a, b: as many arrays on either side, pairwise of one shape, batch-first. More than one array
        counts as their concatenation, so a wider one weighs more.

    Returns:
      [batch]

    Raises:
      ValueError: shapes that differ. Broadcasting would hide it.
    """
    shapes = [x.shape for x in a], [x.shape for x in b]
    if shapes[0] != shapes[1]:
        raise ValueError(f'Cannot compare states of shapes {shapes[0]} and {shapes[1]}.')
    # Squared and summed in float32, whatever the states are in.
    total = sum(
        jnp.sum(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)), axis=range(1, x.ndim))
        for x, y in zip(a, b, strict=True)
    )
    return total / sum(x[0].size for x in a)


def communicate(
    student: Speaker,
    teacher: Speaker,
    state: State,
    teacher_lower: jax.Array,
    *,
    rounds: int,
    reference: str,
    measure: Callable[[State, State], jax.Array] = distance,
    noise_std: float,
    remat_policy: Callable[..., bool],
    key: jax.Array | None,
) -> jax.Array:
    """L_interact: what the student should have heard itself say, summed over the rounds.

    A round: the teacher interprets what it heard, answers, the student decodes the answer, and the
    difference to its state is the round's loss. Then the student interprets the answer and sends a
    follow-up; nobody reads the last one, so it is not computed. Rounds are scanned: a compiled
    conversation is as large for ten rounds as for two.

    Args:
      student, teacher: the two sides.
      state: (s, e) of the student on the batch.
      teacher_lower: s'_h = D_h(m_g), the lower state that the teacher decodes from the student's first
        message.
      rounds: how many; 0 gives zeros.
      reference: 'running' compares a round with the state that the student spoke from (Algorithm 1),
        'original' with `state`.
      measure: (what is compared with, what the student decodes) -> [batch].
      noise_std: standard deviation of the noise on s'_h before the teacher interprets it.
      remat_policy: what of a round is saved for the gradient, one of jax.checkpoint_policies; changes no
        result.
      key: for dropout and noise, every round its own; None for neither.

    Returns:
      [batch]
    """
    if rounds == 0:
        return jnp.zeros(teacher_lower.shape[0], jnp.float32)

    def keys_of(key):
        return (None,) * 6 if key is None else jax.random.split(key, 6)

    def answer(spoken_from, teacher_lower, keys):
        """The first half of a round: -> (what the student decodes, loss [batch])."""
        noise_key, upper_key, encode_key, decode_key = keys
        if noise_std and key is not None:
            teacher_lower = teacher_lower + noise_std * jax.random.normal(
                noise_key, teacher_lower.shape, teacher_lower.dtype
            )
        interpreted = teacher.upper(teacher_lower, upper_key)
        message = teacher.encode(teacher_lower, interpreted, encode_key)
        decoded = student.decode(message, decode_key)
        compared = spoken_from if reference == 'running' else state
        return decoded, measure(compared, decoded)

    def full_round(carry, round_key):
        spoken_from, teacher_lower = carry
        *answer_keys, upper_key, follow_key = keys_of(round_key)
        (s, _), loss = answer(spoken_from, teacher_lower, answer_keys)
        e = student.upper(s, upper_key)
        encode_key, decode_key = (None, None) if key is None else jax.random.split(follow_key)
        teacher_lower, _ = teacher.decode(student.encode(s, e, encode_key), decode_key)
        return ((s, e), teacher_lower), loss

    round_keys = None if key is None else jax.random.split(key, rounds)
    first_keys, last_key = (None, None) if key is None else (round_keys[:-1], round_keys[-1])
    # A loop keeps the two passes apart by itself. One of a single turn is none once it is compiled, and the
    # compiler then keeps what it likes; to prevent that was slower and took more memory (docs/tpu.md).
    one_round = jax.checkpoint(full_round, policy=remat_policy, prevent_cse=False)
    (spoken_from, teacher_lower), losses = jax.lax.scan(
        one_round, (state, teacher_lower), first_keys, length=rounds - 1
    )
    _, last_loss = answer(spoken_from, teacher_lower, keys_of(last_key)[:4])
    return losses.sum(axis=0) + last_loss
