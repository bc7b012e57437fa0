"""CIFAR-10 with few labels: a public ViT-S/14 teaches a ViT of its first four blocks, at 70 pixels.

    python -m td_jax.main --config=configs/public_vit_cifar10.py --workdir=runs/public_vit \\
        --config.teacher.pretrained=FOLDER --config.dataset.image_size=70

Score: not measured yet; docs/cifar.md has the commands that search the hyperparameters and make the table.

The paper's section 4.1 with a teacher that two CPU cores can run: a ViT of 12 blocks, width 384 and patches
of 14 pixels, by default DINOv2-small as it is published. It has no head, so methods that compare predictions
read a probe, which is fitted to each student's labels. The student is its first four blocks and everything
around them. All ten classes, `dataset.examples_per_class` labels per class, the other training images without
labels. 70 pixels are 5 by 5 patches.

Everything about the teacher is spelled out, so that operations are counted without its file. Without
FOLDER, it is downloaded. In td_jax.tune and td_jax.reproduce, `--teacher=FOLDER` names it.
"""

from td_jax.configs import vit_tiny_cifar10


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = vit_tiny_cifar10.get_config()

    config.num_seeds = 1
    config.batch_size = 32
    config.dataset.classes = ()
    config.dataset.unlabelled = 'rest'
    config.optimizer.learning_rate = 1e-4

    for model in (config.model, config.teacher.model):
        model.variant = 'S/14'
        model.width = model.mlp = model.heads = 0
        model.activation = 'gelu'
    for task in (config.dataset, config.teacher.dataset):
        task.image_size = 70
        task.resize = 'bicubic_antialias'
        task.crop_mode = 'center'
        task.crop_pct = 0.875
        task.image_mean = (0.485, 0.456, 0.406)
        task.image_std = (0.229, 0.224, 0.225)

    config.teacher.pretrained = 'hf://facebook/dinov2-small'
    config.teacher.model.layers = 0
    config.teacher.model.split = 6
    config.teacher.dataset.classes = ()

    # After block 6 the states of a DINOv2 vary little, after its last LayerNorm twenty times as much.
    config.communication.state_scale = 'data'
    config.communication.hidden = 256
    config.communication.message = 128
    return config
