"""CIFAR-10 with few labels: a public EfficientNet at 64 pixels teaches a small ViT at 32 pixels.

    python -m td_jax.main --config=configs/public_cnn_cifar10.py --workdir=runs/public_cnn \\
        --config.teacher.pretrained=FOLDER --config.teacher.dataset.image_size=64 \\
        --config.teacher.model.split=5

Score: not measured yet; docs/cifar.md has the commands that search the hyperparameters and make the table.

Not in the paper: a student as one would deploy it, which has neither the architecture nor the image size of
its teacher and starts at random. The teacher, an EfficientNet-lite0 trained on ImageNet, has labels other
than CIFAR's, so methods that compare predictions read a probe, which is fitted to each student's labels. All
ten classes, `dataset.examples_per_class` labels per class, the other training images without labels. Both
models see the same crop of an image, each at its own size.

Everything about the teacher is spelled out, so that operations are counted without its file. Without
FOLDER, it is downloaded. In td_jax.tune and td_jax.reproduce, `--teacher=FOLDER` names it.
"""

from td_jax.configs import vit_tiny_cifar10


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = vit_tiny_cifar10.get_config()

    config.num_seeds = 1
    # In a pilot, two students without distillation were then at their best on validation images.
    config.num_steps = 600
    config.batch_size = 32
    config.dataset.classes = ()
    config.dataset.unlabelled = 'rest'
    config.optimizer.learning_rate = 1e-3

    # Not a ResNet: in a pilot with two seeds together on a CPU, a step of R8x1 took far longer.
    config.model.initial = 'random'

    teacher = config.teacher
    teacher.pretrained = 'hf://timm/tf_efficientnet_lite0.in1k'
    teacher.model.name = 'efficientnet'
    teacher.model.variant = 'lite0'
    teacher.model.layers = teacher.model.width = teacher.model.mlp = teacher.model.heads = 0
    # The first five of seven stages; those after it shrink the grid from 4 by 4 to 2 by 2.
    teacher.model.split = 5
    teacher.dataset.classes = ()
    teacher.dataset.image_size = 64
    teacher.dataset.resize = 'bicubic_antialias'
    teacher.dataset.crop_mode = 'center'
    teacher.dataset.crop_pct = 0.875
    # The teacher takes nine tenths of a step of LD; of fixed views, its outputs are computed once. A labelled
    # image has as many as 600 steps show it with 50 labels per class, so that they vary as much as without;
    # the same steps show fewer than half of the others (1.4 GB).
    teacher.views, teacher.unlabelled_views = 39, 1

    config.communication.state_scale = 'data'
    config.communication.hidden = 128
    config.communication.message = 64
    return config
