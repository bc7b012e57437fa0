"""The config that td_jax ships as td_jax/configs/public_cnn_cifar10.py, where its description is."""

from td_jax.configs.public_cnn_cifar10 import get_config

__all__ = ['get_config']
