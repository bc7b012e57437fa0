"""ImageNet: the public ViT-B/32 teaches a ViT of its first four blocks, at 352 pixels.

    python -m td_jax.main --config=configs/vit_imagenet_352.py --workdir=runs/vit_imagenet_352

Score: not measured; the paper has no number at this size.
Cost: 1.1e18 operations for TD with two rounds. On four v5e chips, 3.5 GB per chip and 0.4 to 0.9 hours by the
compiler's report (docs/tpu.md), not by a run; at 384 pixels 3.9 GB and 0.5 to 1.1 hours.

This is configs/vit_imagenet.py at another image size, which both models have; the checkpoint's position
embeddings are resized to it. 352 pixels are 11 by 11 patches, with the class token 122 tokens, which fit in
one tile of 128 lanes of a TPU. The 145 tokens of the paper's 384 pixels take two.
"""

from td_jax.configs import vit_imagenet


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = vit_imagenet.get_config()
    config.dataset.image_size = 352
    return config
