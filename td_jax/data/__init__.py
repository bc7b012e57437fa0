"""The data sets, by the name that `config.dataset.name` gives them."""

from td_jax.data import digits, movielens

# name -> load(config.dataset, task) -> Source
SOURCES = {'movielens': movielens.load, 'digits': digits.load}
