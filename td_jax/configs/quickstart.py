"""Handwritten digits: a teacher that has seen all training images teaches students with ten labels per class.

    python -m td_jax.compare --config=configs/quickstart.py --workdir=runs/quickstart --trials=0

Score: a test accuracy of 0.88 without distillation, 0.92 with LD and with TD + LD, 0.88 with TD;
docs/compare.md has the table and its command.
Cost: seconds per run on a CPU.

Not in the paper; the setting of launch/quickstart.sh, in which distillation helps. The 1,797 real 8x8 images
come with scikit-learn, so nothing is downloaded. Teacher and student tell the same ten digits apart, so
methods with a logits term compare their predictions directly.
"""

from td_jax.configs import common


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = common.get_config()

    config.num_seeds = 5
    config.num_steps = 600
    config.batch_size = 32
    config.eval_every = 50
    config.log_every = 50
    config.save_every = 300
    config.dataset.name = 'digits'
    config.dataset.examples_per_class = 10
    config.model.hidden = (32, 16)

    config.teacher.model.hidden = (128, 64)
    config.teacher.num_steps = 300
    config.teacher.inputs = 'clean'

    config.communication.hidden = 64
    config.communication.message = 32

    # By validation data, of a few values each.
    config.td.weights.state = config.td.weights.message = 0.5
    config.td.weights.interact = 0.1
    config.fitnet.weights.state = 0.3
    config.rkd.weights.distance = 30.0
    config.rkd.weights.angle = 60.0
    return config
