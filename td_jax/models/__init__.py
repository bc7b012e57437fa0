"""The architectures, by the name that `config.model.name` gives them."""

from td_jax.models import efficientnet, mlp, resnet, resnet_bn, vit

# name -> build(model config, vocabularies, num_outputs, dtype) -> base.Model
MODELS = {
    'mlp': mlp.build,
    'vit': vit.build,
    'resnet': resnet.build,
    'efficientnet': efficientnet.build,
    'resnet_bn': resnet_bn.build,
}
