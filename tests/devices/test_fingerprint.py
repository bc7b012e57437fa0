"""Fingerprints: the same for the same arrays on any device, different for different arrays."""

import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.devices import fingerprint, small_arrays

ROOT = pathlib.Path(__file__).parents[2]


def mix(x):
    """The finalizer of MurmurHash3, in Python integers."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def make_expected_line(name, array):
    """The line that describes an array, computed word by word."""
    array = np.asarray(array)
    words = np.frombuffer(array.tobytes(), f'u{array.dtype.itemsize}')
    sums = [
        sum(mix(int(word) ^ mix(place ^ salt)) for place, word in enumerate(words)) % 2**32
        for salt in (0x9E3779B9, 0x7F4A7C15)
    ]
    return f'{name} {array.dtype} {array.shape} {sums[0]:08x}{sums[1]:08x}\n'


@pytest.fixture(params=['by NumPy', 'compiled'])
def sum_each_way(request, monkeypatch):
    """Sums small arrays by NumPy, then by a compiled program, as large ones are."""
    if request.param == 'compiled':
        monkeypatch.setattr(small_arrays, 'MAX_ELEMENTS', -1)


@pytest.mark.usefixtures('sum_each_way')
@pytest.mark.parametrize('dtype', ['float32', 'int32', 'bfloat16', 'float16', 'uint8', 'int8', 'bool'])
@pytest.mark.parametrize('shape', [(), (1,), (5,), (2, 3), (3, 2, 5)])
def test_it_is_sha256_of_names_types_shapes_and_sums(dtype, shape):
    array = jnp.asarray(np.random.default_rng(0).normal(size=shape) * 3, dtype)
    text = make_expected_line('a/0', array) + make_expected_line('b', np.float32(1))
    assert fingerprint.of({'b': jnp.float32(1), 'a': (array,)}) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.usefixtures('sum_each_way')
@pytest.mark.parametrize('dtype', ['float64', 'int64'])
def test_64_bits_are_two_words(dtype):
    array = (np.random.default_rng(0).normal(size=(3, 2)) * 3).astype(dtype)
    jax.config.update('jax_enable_x64', True)
    try:
        actual = fingerprint.of_arrays({'a': jnp.asarray(array)})
    finally:
        jax.config.update('jax_enable_x64', False)
    halves = make_expected_line('a', array.view(np.uint32)).split(')')[-1].strip()
    assert actual == {'a': f'{dtype} (3, 2) {halves}'}


def test_what_numpy_sums_is_small_and_whole(monkeypatch):
    monkeypatch.setattr(small_arrays, 'MAX_ELEMENTS', 6)
    called = []
    monkeypatch.setattr(
        fingerprint, '_compute_sums', lambda array: called.append(array.shape) or np.zeros(2, np.uint32)
    )
    fingerprint.of({'a': np.zeros((2, 3), np.float32), 'b': np.zeros(7, np.float32), 'c': np.zeros(1)})
    assert sorted(called) == [(1,), (7,)]


def test_it_tells_trees_apart_but_not_their_order():
    array = np.arange(6, dtype=np.float32)
    tree = {'a': array, 'b': array + 1}
    assert fingerprint.of(tree) == fingerprint.of(dict(reversed(tree.items())))
    others = [
        {'a': array, 'c': array + 1},
        {'a': array, 'b': array + 1.5},
        {'a': array, 'b': (array + 1).reshape(2, 3)},
        {'a': array, 'b': (array + 1).view(np.int32)},
        {'a': array, 'b': np.flip(array + 1)},
        {'b': array, 'a': array + 1},
        {'a': array},
    ]
    assert len({fingerprint.of(tree), *map(fingerprint.of, others)}) == 8


def test_every_bit_counts():
    array = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
    fingerprints = {fingerprint.of(array)}
    for bit in range(0, array.nbytes * 8, 37):
        content = bytearray(array.tobytes())
        content[bit // 8] ^= 1 << bit % 8
        fingerprints.add(fingerprint.of(np.frombuffer(content, np.float32).reshape(7, 11)))
    assert len(fingerprints) == 1 + len(range(0, array.nbytes * 8, 37))


@pytest.mark.parametrize('most', [small_arrays.MAX_ELEMENTS, -1])
def test_it_is_the_same_on_eight_devices(most):
    program = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from td_jax.devices import fingerprint, small_arrays
small_arrays.MAX_ELEMENTS = {most}
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ('x', 'y'))
array = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
for names in ((), ('x', 'y'), (None, 'y'), ('x',)):
    print(fingerprint.of({'a': jax.device_put(array, NamedSharding(mesh, PartitionSpec(*names)))}))
"""
    completed = subprocess.run(
        [sys.executable, '-c', program.replace('{most}', str(most))],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '8'},
        capture_output=True,
        text=True,
        check=True,
    )
    array = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    assert completed.stdout.split() == [fingerprint.of({'a': array})] * 4
