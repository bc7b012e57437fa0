"""Attention, as matrix products or as one TPU kernel for a few heads of one image at a time.

Between the products, the compiler moves scores and weights of all heads through memory. In the kernel, they
stay in the chip's vector memory, and the backward pass computes them again.

Within the kernel, scores lie as [keys, queries], so that the softmax reduces over rows, which costs no move
between lanes. As many heads as fill the 128 lanes of a register form a group (two of 64 features), and their
queries stand below each other, zero outside their own head's lanes:

    [tokens, lanes] -> [heads * padded tokens, lanes]

One product then gives the scores of a whole group, [tokens, heads * padded tokens]: 145 tokens of two heads
fill three registers per row instead of four, and each product is as deep as the matrix unit.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from td_jax.errors import UserError

LANES = 128
# Rows of a register of bfloat16; those of float32 are half as many.
ROWS = 16
# With more, the scores of a group no longer fit in the vector memory that a kernel gets.
MAX_TOKENS = 256


def check(tokens: int, features: int):
    """Refuses sequences and heads that the kernel does not take.

    Args:
      tokens: of a sequence.
      features: of a head.

    Raises:
      UserError: more tokens than fit, or heads that do not fill a register.
    """
    if LANES % features:
        raise UserError(
            f'model.attention is kernel, but heads of {features} features do not fill {LANES} lanes; set it '
            'to dot.'
        )
    if tokens > MAX_TOKENS:
        raise UserError(
            f'model.attention is kernel, which takes at most {MAX_TOKENS} tokens, but there are {tokens}; '
            'set it to dot.'
        )


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


def attend_by_kernel(query, key, value):
    """`attend` as a kernel for TPUs, if it is traced within a mesh; else `attend`.

    Args:
      query, key, value: [batch, tokens, heads, features]; the batch is cut over all axes of the mesh.

    Returns:
      [batch, tokens, heads, features]

    Raises:
      UserError: more tokens than the kernel takes, or heads that do not fill a register.
    """
    check(*query.shape[1::2])
    return attend(query, key, value) if _mesh().empty else _attend_by_kernel(query, key, value)


# name -> f(query, key, value).
ATTENTIONS = {'dot': attend, 'kernel': attend_by_kernel}


def _mesh():
    return jax.sharding.get_abstract_mesh()


@jax.custom_vjp
def _attend_by_kernel(query, key, value):
    return _on_every_device(run_forward, query, key, value)


def _forward(query, key, value):
    return _attend_by_kernel(query, key, value), (query, key, value)


def _backward(inputs, gradient):
    return _on_every_device(run_backward, *inputs, gradient)


_attend_by_kernel.defvjp(_forward, _backward)


def _on_every_device(function, *arrays):
    """Runs a function on each device's part of a batch, because the compiler cannot cut a kernel."""
    cut = jax.sharding.PartitionSpec(_mesh().axis_names)
    # A kernel does not tell which of its results differ between devices.
    return jax.shard_map(function, mesh=_mesh(), in_specs=cut, out_specs=cut, check_vma=False)(*arrays)


def run_forward(query, key, value, interpret=False):
    """The kernel of the forward pass: `attend`, for sizes that `check` allows.

    `interpret` runs it without a TPU, slowly.
    """
    return _call(_attend_group, (query, key, value), 1, 2, interpret)[0]


def run_backward(query, key, value, gradient, interpret=False):
    """The kernel of the backward pass: (gradient of query, of key, of value) for that of the result."""
    return tuple(_call(_attend_group_backward, (query, key, value, gradient), 3, 5, interpret))


def _call(compute, arrays, num_results, num_products, interpret):
    """Runs a function of groups on arrays as of `attend`: a program for each image and two groups.

    Args:
      compute: f(arrays of [tokens, lanes], features) -> as many of them as there are results.
      arrays: [batch, tokens, heads, features].
      num_results: of the function.
      num_products: of matrices of a head's tokens, for its cost.
      interpret: whether to run without a TPU.
    """
    batch, tokens, heads, features = arrays[0].shape
    width = heads * features
    padding = -width % LANES
    arrays = [array.reshape(batch, tokens, width) for array in arrays]
    arrays = [jnp.pad(array, ((0, 0), (0, 0), (0, padding))) for array in arrays]
    num_groups = (width + padding) // LANES
    # Two groups in one program fill each other's waits.
    at_once = 1 if num_groups % 2 else 2

    def kernel(*refs):
        for i in range(at_once):
            lanes = slice(i * LANES, (i + 1) * LANES)
            results = compute(*(ref[0, :, lanes] for ref in refs[: len(arrays)]), features)
            for ref, result in zip(refs[len(arrays) :], results, strict=True):
                ref[0, :, lanes] = result.astype(ref.dtype)

    scores = batch * heads * tokens**2
    cost = pl.CostEstimate(
        flops=num_products * 2 * scores * features,
        transcendentals=scores,
        bytes_accessed=(len(arrays) + num_results) * arrays[0].nbytes,
    )
    block = pl.BlockSpec((1, tokens, at_once * LANES), lambda image, group: (image, 0, group))
    results = pl.pallas_call(
        kernel,
        grid=(batch, num_groups // at_once),
        in_specs=[block] * len(arrays),
        out_specs=[block] * num_results,
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays[:num_results]],
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel')),
        cost_estimate=cost,
        interpret=interpret,
        name=compute.__name__.strip('_'),
    )(*arrays)
    return [result[..., :width].reshape(batch, tokens, heads, features) for result in results]


def _attend_group(query, key, value, features):
    """[tokens, lanes] of a group -> (the same of its result,)."""
    weights = _weights(key, _stack(query, features), features)
    # [queries of all heads, lanes]
    y = _product(weights.astype(value.dtype), value, 0, 0)
    return (_unstack(y, len(query), features),)


def _attend_group_backward(query, key, value, gradient, features):
    """[tokens, lanes] of a group -> the gradients of query, key and value, the same."""
    queries, gradients = _stack(query, features), _stack(gradient, features)
    weights = _weights(key, queries, features)
    of_weights = _product(value, gradients, 1, 1)
    mean = (weights * of_weights).sum(axis=0, keepdims=True)
    of_scores = (weights * (of_weights - mean) * features**-0.5).astype(key.dtype)
    of_value = _product(weights.astype(value.dtype), gradients, 1, 0)
    of_key = _product(of_scores, queries, 1, 0)
    of_query = _product(of_scores, key, 0, 0)
    return _unstack(of_query, len(query), features), of_key, of_value


def _weights(key, queries, features):
    """Keys [tokens, lanes] and stacked queries -> the softmax over keys, [tokens, queries], in float32."""
    scores = _product(key, queries, 1, 1)
    scores = (scores - scores.max(axis=0, keepdims=True)) * (math.log2(math.e) / math.sqrt(features))
    exponentials = jnp.exp2(scores)
    return exponentials * (1 / exponentials.sum(axis=0, keepdims=True))


def _product(x, y, x_axis, y_axis):
    """Sums the product of two matrices over an axis of each, in float32."""
    # Stated here, since a kernel cannot have products of bfloat16 at the precision that `exact` asks for.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    axes = ((x_axis,), (y_axis,)), ((), ())
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def _padded(tokens):
    return -(-tokens // ROWS) * ROWS


def _stack(x, features):
    """[tokens, lanes] -> [heads * padded tokens, lanes]: each head's rows are zero outside its lanes."""
    padding = jnp.zeros((_padded(len(x)) - len(x), LANES), x.dtype)
    x = jnp.concatenate([x, padding]) if len(padding) else x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.concatenate(
        [
            jnp.where((lane >= start) & (lane < start + features), x, jnp.zeros_like(x))
            for start in range(0, LANES, features)
        ]
    )


def _unstack(x, tokens, features):
    """[heads * padded tokens, lanes] -> [tokens, lanes], each head's lanes from its rows."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (tokens, LANES), 1)
    heads = [x[i * _padded(tokens) :][:tokens] for i in range(LANES // features)]
    merged = heads[0]
    for i, head in enumerate(heads[1:], start=1):
        merged = jnp.where(lane >= i * features, head, merged)
    return merged
