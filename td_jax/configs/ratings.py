"""Ratings of your own: a recommender that knows all of them teaches a small one.

Not in the paper; its section 4.2 with a CSV or TSV of yours. Its first line names the columns, of which four
are needed: user, item, rating and timestamp (`dataset.user_column` and so on give other names). The split is
temporal, the metric the RMSE on the last tenth.

Further columns may describe an item: `dataset.words` and `dataset.categories` name them. With
`dataset.filter_column` and `dataset.filter_value` the student is trained only on some items, such as those of
one category, and the teacher still on all.

Cost: as configs/movielens.py, about a minute for 100,000 ratings on two CPU cores. Expect: what an RMSE says
depends on the ratings; the standard deviation of the last tenth is that of a guess at its mean.

    python -m td_jax.main --config=configs/ratings.py --workdir=runs/ratings \\
        --config.dataset.path=ratings.csv \\
        --config.dataset.words=title --config.dataset.categories=genres \\
        --config.dataset.filter_column=genres --config.dataset.filter_value=Drama
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
