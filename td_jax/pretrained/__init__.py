"""A public ViT or ResNet <-> our parameter tree.

Read are the .npz files of google-research/vision_transformer and of google-research/big_transfer (BiT), and
the folders of Hugging Face's ViT, DeiT and DINOv2 and of timm's, EfficientNet and ResNet (config.json and
model.safetensors), from a disk or from where they are published. Nothing that could run code is ever loaded.
"""

from td_jax.errors import UserError
from td_jax.pretrained import bit, fetch, google, hugging_face, npz, timm
from td_jax.pretrained.architecture import Checkpoint


def read(location: str) -> Checkpoint:
    """Reads a checkpoint, downloading it first if need be.

    Args:
      location: an .npz of google-research/vision_transformer or of BiT, which its contents tell (a path, ~
        expanded, gs://BUCKET/OBJECT or https://...), a ViT, DeiT or DINOv2 of Hugging Face or
        timm, or an EfficientNet or ResNet of timm (a folder, hf://OWNER/NAME or hf://timm/NAME).
        What is downloaded is kept in $TD_JAX_CACHE, ~/.cache/td_jax if that is not set; hf:// is kept where
        huggingface_hub keeps it.

    Raises:
      UserError: nothing there and no network, a damaged file, or neither; the first key that is missing
        or has a wrong shape is named.
    """
    path = fetch.path_of(location)
    if path.is_dir():
        return (timm if timm.recognises(path) else hugging_face).read(location, path)
    if path.suffix == '.safetensors':
        raise UserError(f'{path}: give its folder, which holds {hugging_face.CONFIG} too.')
    raw = npz.arrays(path)
    return (bit if bit.recognises(raw) else google).read(location, path, raw)
