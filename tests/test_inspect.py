"""The command that describes a checkpoint."""

import inspect as standard
import os
import pathlib
import subprocess
import sys

import pytest

from td_jax.pretrained import summary

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'


def run(*arguments, **environment):
    """Runs the command: (exit code, stdout, stderr)."""
    completed = subprocess.run(
        [sys.executable, '-m', 'td_jax.inspect', *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.returncode, completed.stdout, completed.stderr


def test_the_command_prints_the_report():
    path = str(GOLDEN / 'vit_tiny.npz')
    assert run(path) == (0, summary.report(path) + '\n', '')


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        ([], 'required: CHECKPOINT'),
        (['a', 'b'], 'unrecognized arguments: b'),
        (['--workdir=a', 'b'], 'unrecognized arguments: --workdir=a'),
        (['nothing/ViT-B_32.npz'], 'https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz'),
        (['tests'], 'holds no config.json'),
        (['pyproject.toml'], 'is damaged or no .npz'),
        (['hf://owner/name'], 'preprocessor_config.json from https://huggingface.co/owner/name'),
    ],
)
def test_invalid_input_is_one_line(tmp_path, arguments, text):
    code, out, err = run(*arguments, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path))
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('td_jax: ')
    assert text in err


def test_nothing_takes_the_place_of_the_standard_module():
    assert pathlib.Path(standard.__file__).parent != ROOT / 'td_jax'
    assert standard.signature(summary.report).parameters.keys() == {'location'}
