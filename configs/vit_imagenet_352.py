"""The config that td_jax ships as td_jax/configs/vit_imagenet_352.py, where its description is."""

from td_jax.configs.vit_imagenet_352 import get_config

__all__ = ['get_config']
