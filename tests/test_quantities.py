"""Numbers in messages, by hand."""

import pytest

from td_jax import quantities


@pytest.mark.parametrize(
    ('seconds', 'expected'),
    [(0.4, '0 s'), (59.4, '59 s'), (60, '1 min'), (89, '1 min'), (7140, '119 min'), (9000, '2.5 h')],
)
def test_duration(seconds, expected):
    assert quantities.describe_duration(seconds) == expected


@pytest.mark.parametrize(
    ('per_second', 'expected'),
    [(0.1049, '0.1'), (0.152, '0.15'), (3.14, '3.1'), (9.96, '10'), (250.6, '251')],
)
def test_rate(per_second, expected):
    assert quantities.describe_rate(per_second) == expected
