"""Random numbers by name, against digests that sha256sum prints."""

import jax
import numpy as np

from td_jax import randomness

# printf NAME | sha256sum | cut -c1-16
SHA256 = {
    'student': '264c8c381bf16c98',
    'teacher': '1057a9604e04b274',
    'teacher/stream/3': '6eed7fe810e06adf',
}


def test_a_seed_is_the_beginning_of_a_digest():
    for name, digits in SHA256.items():
        assert randomness.derive_seed(*name.split('/')) == int(digits, 16) >> 1
    assert randomness.derive_seed('teacher', 'stream', 3) == randomness.derive_seed('teacher/stream/3')


def test_a_key_by_name_is_folded_with_the_first_four_bytes():
    key = jax.random.key(7)
    for name, digits in list(SHA256.items())[:2]:
        expected = jax.random.fold_in(key, np.uint32(int(digits[:8], 16)))
        actual = randomness.fold_name(key, name)
        assert jax.random.key_data(actual).tolist() == jax.random.key_data(expected).tolist()
