"""The config that td_jax ships as td_jax/configs/digits.py, where its description is."""

from td_jax.configs.digits import get_config

__all__ = ['get_config']
