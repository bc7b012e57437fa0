"""The command that reports on the TPU compiler: what it refuses."""

import pytest

from tests import forked


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        (['--topology=nosuch'], "--topology 'nosuch' is not known; it is a chip, a colon and a grid"),
        (['--topology=v5e:2x2', '--config.batch_size=0'], 'batch_size is 0; it must be more than 0'),
    ],
)
def test_invalid_input_is_one_line(flags, text):
    completed = forked.run(['-m', 'td_jax.tpu_report', '--config=configs/vit_tiny_cifar10.py', *flags])
    assert (completed.returncode, completed.stdout, completed.stderr.count('\n')) == (2, '', 1)
    assert completed.stderr.startswith(f'td_jax: {text}')
