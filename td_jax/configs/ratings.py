"""Ratings of your own: a recommender that knows all of them teaches a small one.

    python -m td_jax.main --config=configs/ratings.py --workdir=runs/ratings \\
        --config.dataset.path=ratings.csv \\
        --config.dataset.words=title --config.dataset.categories=genres \\
        --config.dataset.filter_column=genres --config.dataset.filter_value=Drama

Score: an RMSE that depends on the ratings; a guess at the mean of the last tenth has its standard deviation.

Not in the paper; its section 4.2 with a CSV or TSV of yours. Its first line names the columns, of which four
are needed: user, item, rating and timestamp (`dataset.user_column` and so on give other names). The split is
temporal, the metric the RMSE on the last tenth.

Further columns may describe an item: `dataset.words` and `dataset.categories` name them. With
`dataset.filter_column` and `dataset.filter_value` the student is trained only on some items, such as those of
one category, and the teacher still on all.
"""

from td_jax.configs import common


def get_config():
    """Returns the ConfigDict of this file's run."""
    config = common.get_config()

    config.num_seeds = 3
    config.num_steps = 800
    config.dataset.name = 'ratings'
    config.model.hidden = (128, 64)
    config.model.embedding_width = 50

    # As in configs/movielens.py: every three of a batch make angles, which take a hundred times as long.
    config.rkd.weights.angle = 0.0

    config.teacher.model.hidden = (512, 256)
    config.teacher.model.embedding_width = 100
    config.teacher.num_steps = 1000
    config.teacher.inputs = 'clean'
    return config
