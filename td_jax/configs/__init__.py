"""The configs that td_jax ships, and common.py, which declares every option of a run once."""
