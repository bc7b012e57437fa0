"""A step here and in PyTorch is the same; without PyTorch the benchmark is skipped."""

import importlib.util
import sys

import pytest

from benchmarks import torch_peer
from td_jax.errors import UserError


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec('torch'), reason='PyTorch is not installed')
@pytest.mark.parametrize('name', torch_peer.CASES)
def test_the_first_steps_have_the_losses_of_pytorch(name, monkeypatch):
    # Compiling them takes a minute.
    monkeypatch.setenv('TORCHDYNAMO_DISABLE', '1')
    case = torch_peer.make_case(*torch_peer.CASES[name])
    result = torch_peer.run_torch(sys.executable, case)
    assert len(result['losses']) == torch_peer.COMPARED
    assert result['difference'] <= torch_peer.TOLERANCE
    # Each step changes the values by more than the tolerance.
    first, *_, last = result['losses']
    assert abs(first - last) > 10 * torch_peer.TOLERANCE


@pytest.mark.parametrize(
    ('output', 'message'),
    [
        ('{"losses": [1.0, 1.0, 1.0, 1.0]}', r'\[1.0, 1.0, 1.0, 1.0\] in PyTorch\.'),
        ('{"losses": [NaN, NaN, NaN, NaN]}', r'\[nan, nan, nan, nan\] in PyTorch\.'),
    ],
)
def test_other_losses_end_the_benchmark(tmp_path, output, message):
    python = tmp_path / 'python'
    python.write_text(f"#!/bin/sh\necho '{output}'\n")
    python.chmod(0o755)
    case = torch_peer.make_case(*torch_peer.CASES['MLP, no distillation'])
    with pytest.raises(UserError, match=message):
        torch_peer.run_torch(str(python), case)


def test_a_python_without_pytorch_is_reported(capsys):
    assert torch_peer.find_torch('nowhere/python') is None
    out, err = capsys.readouterr()
    assert out == ''
    assert err == (
        'benchmarks.torch_peer: skipped, since nowhere/python has no PyTorch (No such file or directory); '
        'the top of benchmarks/torch_peer.py says how to install it.\n'
    )
