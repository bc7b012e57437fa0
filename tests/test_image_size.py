"""Draws of labels and differences of the benchmark that compares image sizes."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import image_size
from td_jax.errors import UserError
from tests import forked

LABELS = np.arange(60) % 3
DRAWS = image_size.draw_rows(LABELS, 2, 5)


def test_draws_share_no_image_and_have_as_many_of_each_class():
    assert [list(rows) for rows in DRAWS[:2]] == [[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]]
    assert len(set(np.concatenate(DRAWS))) == 30
    with pytest.raises(UserError, match='11 draws of 2 images per class need 22; a class has 20'):
        image_size.draw_rows(LABELS, 2, 11)


def test_a_probe_is_not_scored_on_its_own_images():
    """Features that say the class are right everywhere else; those of the next class never are."""
    features = np.eye(3, dtype=np.float32)[LABELS]
    correct = image_size.score(features, LABELS, DRAWS)
    for hits, rows in zip(correct, DRAWS, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(hits)), np.sort(rows))
    assert np.nanmin(correct) == 1
    wrong = np.array(features)
    wrong[30:] = np.roll(wrong[30:], 1, axis=1)
    np.testing.assert_array_equal(image_size.score(wrong, LABELS, DRAWS)[:, 30:], 0)


def test_differences_have_paired_intervals_over_draws_and_over_images():
    rng = np.random.default_rng(0)
    ours, baseline = (rng.integers(0, 2, (5, 60)).astype(float) for _ in range(2))
    for correct in (ours, baseline):
        for hits, rows in zip(correct, DRAWS, strict=True):
            hits[rows] = np.nan
    for name, axis in {'draws': 1, 'images': 0}.items():
        means = [np.nanmean(correct, axis=axis) for correct in (ours, baseline)]
        expected = scipy.stats.ttest_rel(*means).confidence_interval(0.95)
        interval = image_size.compare(ours, baseline)[name].interval()
        np.testing.assert_allclose(interval, expected)


def test_a_size_that_is_no_number_is_one_line():
    command = ['-m', 'benchmarks.image_size', '--teacher=t', '--features=f']
    completed = forked.run([*command, '--image_sizes=168,-14'])
    assert (completed.returncode, completed.stdout) == (2, '')
    assert completed.stderr == "td_jax: --image_sizes has '-14'; each is a number of pixels, as in 168,154.\n"
