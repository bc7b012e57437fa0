"""Images of your own: a ViT of six blocks teaches one of three.

    python -m td_jax.main --config=configs/images.py --workdir=runs/images --config.dataset.path=FOLDER
    python -m td_jax.main --config=configs/images.py --workdir=runs/dinov2 --config.dataset.path=FOLDER \\
        --config.teacher.pretrained=hf://facebook/dinov2-small --config.dataset.image_size=98

Score: an accuracy that depends on the images; a guess has the share of the largest class.

Not in the paper; its section 4.1 at a size that two CPU cores can train, on a folder of yours with a folder
for each class, or with `train` and `test` that have those. The teacher is trained here on all of the images.
The student starts from the teacher's first blocks. An image has four times the tokens of one of
configs/vit_tiny_cifar10.py.

A public teacher, `teacher.pretrained`, knows more. Its file says what it is: the teacher is then as large as
that, and so are the blocks and the images of a student that starts from it. Where a student cannot start from
it, as from an EfficientNet, it is the small ViT of this file, and starts at random.
"""

from td_jax.configs import vit_tiny_cifar10


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = vit_tiny_cifar10.get_config()

    config.dataset.name = 'images'
    config.dataset.image_size = 64
    config.dataset.classes = ()
    config.dataset.examples_per_class = 0
    config.num_steps = 1000
    config.batch_size = 32
    config.eval_every = 200
    config.log_every = 100
    config.save_every = 500
    config.model.layers = 3
    config.model.split = 2

    config.teacher.dataset.classes = ()
    config.teacher.num_steps = 2000
    config.teacher.labels = 'shared'
    return config
