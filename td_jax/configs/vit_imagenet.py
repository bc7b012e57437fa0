"""ImageNet: the public ViT-B/32 teaches a ViT of its first four blocks, at 384 pixels.

    python -m td_jax.main --config=configs/vit_imagenet.py --workdir=runs/vit_imagenet

Score: not measured here; the paper has 0.487 without distillation and 0.499 with TD (Table 4).
Cost: 1.3e18 operations for TD with two rounds; `python -m td_jax.reproduce --tables=4 --dry_run
--workdir=runs/tables` prints them for every method, with the hours on a device of a given speed. On four
v5e chips, 3.9 GB per chip and 0.5 to 1.1 hours by the compiler's report (docs/tpu.md), not by a run.

Reproduces section 4.1 of arXiv 2310.03188 (Table 4, ImageNet) with the fine-tuning recipe of the ViT paper
(Dosovitskiy et al. 2020, section 4.1 and appendix B.1.1): 384 pixels, batches of 512, SGD with momentum 0.9,
cosine decay after a warm-up, gradients clipped at norm 1, 20,000 steps, random crops and mirroring, inputs
from -1 to 1. The teacher is the ImageNet-21k checkpoint, downloaded on first use; its labels are not
ImageNet's 1,000, so a logits term reads a probe on it.
"""

from td_jax.configs import common


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = common.get_config()

    config.num_steps = 20_000
    config.batch_size = 512
    # By the TPU compiler's word less memory and time on v5e than a batch at once (docs/tpu.md).
    config.micro_batches = 4
    config.eval_batch_size = 512
    config.eval_every = 2_000
    config.log_every = 100
    config.save_every = 1_000
    config.compute_dtype = 'bfloat16'
    config.dataset.name = 'imagenet'
    config.dataset.image_size = 384

    config.optimizer.name = 'sgd'
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.06
    config.optimizer.schedule = 'cosine'
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0

    for model in (config.model, config.teacher.model):
        model.name = 'vit'
        model.variant = 'B/32'
    config.model.layers = 4
    config.model.split = 2
    config.model.initial = 'teacher'

    config.teacher.pretrained = 'gs://vit_models/imagenet21k/ViT-B_32.npz'
    config.teacher.model.split = 6
    config.teacher.model.pre_logits = True
    config.teacher.labels = 'probe'
    config.teacher.inputs = 'varied'

    config.td.rounds = 2
    config.communication.hidden = 512
    config.communication.message = 512
    return config
