"""The config that td_jax ships as td_jax/configs/ratings.py, where its description is."""

from td_jax.configs.ratings import get_config

__all__ = ['get_config']
