"""CIFAR-10: the public ViT-B/32 teaches a ViT of its first four blocks, at 384 pixels.

    python -m td_jax.main --config=configs/vit_cifar10.py --workdir=runs/vit_cifar10

Score: not measured here; the paper has 0.937 without distillation and 0.941 with TD (Table 4).
Cost: 1.3e18 operations for TD with two rounds; `python -m td_jax.reproduce --tables=4 --dry_run
--workdir=runs/tables` prints them for every method, with the hours on a device of a given speed. On four
v5e chips, 3.9 GB per chip and 0.5 to 1.1 hours by the compiler's report (docs/tpu.md), not by a run.

Reproduces section 4.1 of arXiv 2310.03188 (Table 4, CIFAR-10) with the fine-tuning recipe of the ViT paper
(Dosovitskiy et al. 2020, section 4.1 and appendix B.1.1): 384 pixels, batches of 512, SGD with momentum 0.9,
cosine decay after a warm-up, gradients clipped at norm 1, 20,000 steps, random crops and mirroring. The
teacher is the ImageNet-21k checkpoint, whose labels are not CIFAR's: a logits term reads a probe on it.
"""

from td_jax.configs import vit_imagenet


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = vit_imagenet.get_config()
    config.dataset.name = 'cifar10'
    config.optimizer.warmup_steps = 500
    config.optimizer.learning_rate = 0.03
    return config
