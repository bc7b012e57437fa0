"""Converts public ViTs, ResNets and EfficientNets to our parameter trees and back.

Supported are the .npz files of google-research/vision_transformer and of google-research/big_transfer (BiT),
and folders with config.json and model.safetensors, in one file or in several: ViT, DeiT and DINOv2 of Hugging
Face or timm, EfficientNet and ResNet of timm. They are read from a disk or downloaded. Nothing that could run
code is ever loaded.
"""

from td_jax.errors import UserError
from td_jax.pretrained import bit, fetch, google, hugging_face, npz, timm, weights
from td_jax.pretrained.architecture import Checkpoint


def read(location: str) -> Checkpoint:
    """Reads a checkpoint, after downloading it if necessary.

    Args:
      location: an .npz of google-research/vision_transformer or of BiT (a path with or without ~,
        gs://BUCKET/OBJECT or https://...); or a ViT, DeiT or DINOv2 of Hugging Face or timm, or an
        EfficientNet or ResNet of timm (a folder, hf://OWNER/NAME or hf://timm/NAME). Downloads are stored in
        $TD_JAX_CACHE, by default ~/.cache/td_jax; those of hf:// in the cache of huggingface_hub.

    Raises:
      UserError: a missing file without a network, a damaged or an unknown file; names the first key that is
        missing or has a wrong shape.
    """
    path = fetch.fetch(location)
    if path.is_dir():
        return (timm if timm.recognises(path) else hugging_face).read(location, path)
    if path.suffix == '.safetensors' or path.name == weights.INDEX:
        raise UserError(f'{path}: give its folder, which holds {hugging_face.CONFIG} too.')
    raw = npz.read_arrays(path)
    return (bit if bit.recognises(raw) else google).read(location, path, raw)
