"""A teacher of your own: any Flax module of three methods, here a small convolutional network.

    python -m examples.own_teacher --workdir=runs/own

It is trained on the digits 0 to 4 first, then talks with a student of the digits 5 to 9, an MLP. With
parameters that it learned elsewhere it is left as it is; docs/own.md says how, and how to bring more.
"""

import flax.linen as nn
import jax
from absl import flags

import td_jax
from td_jax import command_line
from td_jax.configs import digits
from td_jax.models import base


class Convolutional(nn.Module):
    """Two convolutions and a Dense, split after the second convolution."""

    num_outputs: int

    def setup(self):
        self.first, self.second = nn.Conv(16, (3, 3), 2), nn.Conv(32, (3, 3), 2)
        self.hidden_layer, self.output_layer = nn.Dense(64), nn.Dense(self.num_outputs)

    def lower(self, inputs, deterministic=True):
        """{'image': [batch, 64]} -> s, [batch, 128]."""
        x = inputs['image'].reshape(-1, 8, 8, 1)
        x = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
        return x.reshape(x.shape[0], -1)

    def upper(self, s, deterministic=True):
        """s -> e, [batch, 64]."""
        return jax.nn.relu(self.hidden_layer(s))

    def head(self, e):
        """e -> y, [batch, num_outputs]."""
        return self.output_layer(e)

    def __call__(self, inputs):
        return self.head(self.upper(self.lower(inputs)))


def build(model_config, vocabularies, num_outputs, dtype):
    """What td_jax asks a model of."""
    return base.from_module(Convolutional(num_outputs))


def train(workdir):
    config = digits.get_config()
    config.teacher.model.name = 'convolutional'
    result = td_jax.train(config, workdir, models={'convolutional': build})
    print(f'{result["metric"]} {result["mean"]:.3f} of {len(result["seeds"])} students')


if __name__ == '__main__':
    folder = flags.DEFINE_string('workdir', None, 'Folder of the run.')
    command_line.run(lambda: train(folder.value), required=('workdir',))
