"""Names of labels, and heads whose outputs are reordered by them."""

import numpy as np
import pytest

from td_jax.pretrained import google, labels
from td_jax.pretrained.architecture import Checkpoint


@pytest.mark.parametrize(
    ('theirs', 'ours', 'expected'),
    [
        (('cat', 'dog', 'bird'), ('cat', 'dog', 'bird'), (0, 1, 2)),
        (('cat', 'dog', 'bird'), ('bird', 'cat', 'dog'), (2, 0, 1)),
        (('Maple Tree', 'aquarium-fish'), ('aquarium_fish', 'maple_tree'), (1, 0)),
        (('tench, Tinca tinca', 'goldfish, Carassius auratus'), ('goldfish', 'tench'), (1, 0)),
        # The names differ only in how they are written.
        (('a', 'A'), ('A', 'a'), (1, 0)),
        (('crane, bird', 'crane, machine'), ('crane, machine', 'crane, bird'), (1, 0)),
        (('crane, bird', 'crane, machine'), ('crane', 'machine'), None),
        (('a', 'A'), ('a', 'b'), None),
        (('cat', 'dog'), ('cat', 'bird'), None),
        (('cat', 'dog', 'bird'), ('cat', 'dog'), None),
        (('n01440764', 'n01443537'), ('tench', 'goldfish'), None),
    ],
)
def test_labels_are_matched_by_name(theirs, ours, expected):
    assert labels.match_order(theirs, ours) == expected


def test_the_heads_outputs_follow_their_names():
    kernel, bias = np.arange(6.0).reshape(2, 3), np.array([10.0, 11.0, 12.0])
    params = {'cls': np.ones(1), 'head_layer': {'kernel': kernel, 'bias': bias}}
    checkpoint = Checkpoint('here', None, params, google.PREPROCESSING, ('a', 'b', 'c'))
    ordered = labels.reorder_head(checkpoint, ('c', 'a', 'b'))
    assert ordered.label_names == ('c', 'a', 'b')
    np.testing.assert_array_equal(ordered.params['head_layer']['kernel'], [[2, 0, 1], [5, 3, 4]])
    np.testing.assert_array_equal(ordered.params['head_layer']['bias'], [12, 10, 11])
    assert ordered.params['cls'] is params['cls']
    assert params['head_layer']['bias'] is bias


def test_other_labels_and_labels_without_names_stay_as_they_are():
    checkpoint = Checkpoint('here', None, {'head_layer': {}}, google.PREPROCESSING, ('a', 'b'))
    assert labels.reorder_head(checkpoint, ('a', 'c')) is checkpoint
    nameless = checkpoint._replace(label_names=None)
    assert labels.reorder_head(nameless, ('a', 'b')) is nameless
