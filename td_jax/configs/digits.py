"""Handwritten digits: five well-known ones teach five that are known from a few examples.

    python -m td_jax.main --config=configs/digits.py --workdir=runs/digits

Score: a test accuracy of 0.88 without distillation and 0.87 with TD, with the hyperparameters and by the
earlier protocol of docs/digits.md, which has the command.
Cost: seconds on a CPU.

Not in the paper; its setting at a size for a first look and the tests. The 1,797 real 8x8 images come with
scikit-learn, so nothing is downloaded. The teacher learns digits 0 to 4 from all of their training images;
the student learns 5 to 9 from `dataset.examples_per_class` images per class. Labels differ, so methods with a
logits term read a probe on the frozen teacher.
"""

from td_jax.configs import common


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = common.get_config()

    config.num_seeds = 5
    config.num_steps = 300
    config.batch_size = 32
    config.eval_every = 50
    config.log_every = 50
    config.save_every = 150
    config.dataset.name = 'digits'
    config.dataset.classes = (5, 6, 7, 8, 9)
    config.dataset.examples_per_class = 10
    config.model.hidden = (32, 16)

    config.teacher.dataset.classes = (0, 1, 2, 3, 4)
    config.teacher.model.hidden = (128, 64)
    config.teacher.num_steps = 300
    config.teacher.inputs = 'clean'
    config.teacher.labels = 'probe'

    config.communication.hidden = 64
    config.communication.message = 32
    return config
