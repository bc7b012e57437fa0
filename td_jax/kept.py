"""What a forward pass keeps for the gradient; the rest is computed again in the backward pass."""

import jax

_POLICIES = jax.checkpoint_policies
# name -> a policy of jax.checkpoint, from the most memory to the least.
KEPT = {
    'everything': _POLICIES.everything_saveable,
    # Results of all matrix products, those of attention included.
    'products': _POLICIES.dots_saveable,
    # Results of products with parameters.
    'weight_products': _POLICIES.dots_with_no_batch_dims_saveable,
    # What goes in.
    'nothing': _POLICIES.nothing_saveable,
}
