"""The architectures, by the name that `config.model.name` gives them."""

from td_jax.models import mlp

# name -> build(model config, vocabularies, num_outputs) -> base.Model
MODELS = {'mlp': mlp.build}
