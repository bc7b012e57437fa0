"""A multi-layer perceptron over named inputs: images, numbers, ids and bags of words."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from td_jax.errors import UserError
from td_jax.models import base


class MLP(nn.Module):
    """Embeds and concatenates its inputs, then runs dense layers with relu.

    `inputs` is a dict of arrays: integers [batch] are ids, which need an entry in `embeddings`;
    floats [batch, vocabulary] with an entry there are weighted bags and become the weighted sum of
    their rows; every other input is flattened and enters as it is.

    Attributes:
      hidden: widths of the hidden layers, input side first.
      num_outputs: width of the prediction.
      split: number of hidden layers in `lower`, at most len(hidden); with 0, s is the embeddings.
      dropout: rate after each hidden layer.
      embeddings: (input name, vocabulary size, width), in the order of concatenation.
      dtype: of the computation; parameters and predictions are float32.
    """

    hidden: tuple[int, ...]
    num_outputs: int
    split: int
    dropout: float
    embeddings: tuple[tuple[str, int, int], ...]
    dtype: str = 'float32'

    def setup(self):
        self.embedding_layers = [
            nn.Embed(vocabulary, width, dtype=self.dtype, name=f'{name}_embedding')
            for name, vocabulary, width in self.embeddings
        ]
        self.hidden_layers = [nn.Dense(width, dtype=self.dtype) for width in self.hidden]
        self.output_layer = nn.Dense(self.num_outputs)
        self.dropout_layer = nn.Dropout(self.dropout)

    def embed(self, inputs):
        """{name: [batch, ...]} -> [batch, sum of widths]."""
        embedding_names = [name for name, _, _ in self.embeddings]
        parts = []
        for name, layer in zip(embedding_names, self.embedding_layers, strict=True):
            x = inputs[name]
            is_bag = jnp.issubdtype(x.dtype, jnp.floating)
            parts.append(x.astype(self.dtype) @ layer.embedding.astype(self.dtype) if is_bag else layer(x))
        others = [inputs[name] for name in sorted(inputs) if name not in embedding_names]
        parts += [x.reshape(x.shape[0], -1).astype(self.dtype) for x in others]
        return jnp.concatenate(parts, axis=-1)

    def run(self, layers, x, deterministic):
        for layer in layers:
            x = self.dropout_layer(jax.nn.relu(layer(x)), deterministic=deterministic)
        return x

    def lower(self, inputs, deterministic=True):
        """inputs -> s, [batch, hidden[split - 1]]; the embeddings as they are where split is 0."""
        return self.run(self.hidden_layers[: self.split], self.embed(inputs), deterministic)

    def upper(self, s, deterministic=True):
        """s -> e, [batch, hidden[-1]]; e is s where split leaves no layer."""
        return self.run(self.hidden_layers[self.split :], s, deterministic)

    def head(self, e):
        """e -> y, [batch, num_outputs]."""
        return self.output_layer(e.astype(jnp.float32))

    def __call__(self, inputs, deterministic=True):
        return self.head(self.upper(self.lower(inputs, deterministic), deterministic))


def build(config, vocabularies: dict[str, int], num_outputs: int, dtype: str) -> base.Model:
    """Builds an MLP from a model config.

    Args:
      config: the fields of `td_jax.configs.common.model_config`.
      vocabularies: number of rows of each id or bag input, by input name.
      num_outputs: width of the prediction.
      dtype: of the computation.

    Raises:
      UserError: a split outside the hidden layers, or embeddings that the data set does not have.
    """
    # Without embeddings, a split at 0 would leave `lower` without parameters.
    least = 0 if vocabularies else 1
    if not least <= config.split <= len(config.hidden):
        raise UserError(
            f'model.split is {config.split}; with {len(config.hidden)} hidden layers it is between {least} '
            f'and {len(config.hidden)}.'
        )
    unknown, others = set(config.embeddings) - set(vocabularies), set(vocabularies) - set(config.embeddings)
    if unknown or (others and not config.embedding_width):
        raise UserError(
            f'model.embeddings names {sorted(config.embeddings)}, the data set has {sorted(vocabularies)}; '
            'give each a width.'
        )
    widths = {**dict.fromkeys(others, config.embedding_width), **config.embeddings}
    embeddings = tuple((name, vocabularies[name], widths[name]) for name in vocabularies)
    module = MLP(
        hidden=tuple(config.hidden),
        num_outputs=num_outputs,
        split=config.split,
        dropout=config.dropout,
        embeddings=embeddings,
        dtype=dtype,
    )
    return base.from_module(module)
