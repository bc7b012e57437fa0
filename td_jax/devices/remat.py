"""What a forward pass saves for the gradient; the rest is computed again in the backward pass."""

import jax

# The names are those of jax.checkpoint_policies, from the most memory to the least.
POLICIES = {
    name: getattr(jax.checkpoint_policies, name)
    for name in (
        'everything_saveable',
        # Results of all matrix products, those of attention included.
        'dots_saveable',
        # Results of products with parameters.
        'dots_with_no_batch_dims_saveable',
        # What goes in.
        'nothing_saveable',
    )
}
