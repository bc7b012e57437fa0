"""The config that td_jax ships as td_jax/configs/movielens.py, where its description is."""

from td_jax.configs.movielens import get_config

__all__ = ['get_config']
