"""A student as a program."""

import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from td_jax.exporting import formats, stablehlo
from td_jax.training import finished as finished_runs
from td_jax.training import train_step


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_stablehlo_takes_any_number_of_images(finished_vit, shown, tmp_path, dtype, logits_of):
    finished = finished_vit(dtype)
    formats.FORMATS['stablehlo'].write(tmp_path / 'made', finished)
    program = jax.export.deserialize(bytearray((tmp_path / 'made').read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    expected = logits_of(finished, shown)
    for count in (1, 5):
        logits = program.call(shown[:count])
        tolerance = {'float32': 1e-5, 'bfloat16': 5e-2}[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected[:count], atol=tolerance, strict=True)


def test_stablehlo_of_an_mlp_holds_its_parameters(mlp_run, tmp_path, logits_of):
    path = tmp_path / 'mlp.stablehlo'
    formats.export(mlp_run, 'stablehlo', path)
    # Another process, which has the file and nothing else.
    code = (
        'import jax.export, json, numpy as np, sys\n'
        'program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))\n'
        'print(json.dumps([program.call(np.full((n, 64), 0.5, np.float32)).tolist() for n in (2, 3)]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, path], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    two, three = json.loads(done.stdout)
    expected = logits_of(finished_runs.load(mlp_run), np.full((3, 64), 0.5, np.float32))
    np.testing.assert_allclose(three, expected, atol=1e-6)
    np.testing.assert_allclose(two, expected[:2], atol=1e-6)


def test_several_inputs_enter_by_name(mlp_run, logits_of):
    """As those of a recommender do."""
    finished = finished_runs.load(mlp_run)

    def inputs(tables, examples, key):
        return {'half': examples['image'][:, :32], 'rest': examples['image'][:, 32:]}

    def joined(params, inputs, key=None):
        image = jax.numpy.concatenate([inputs['half'], inputs['rest']], axis=1)
        return finished.student.lower(params, {'image': image}, key)

    params = finished.params[train_step.STUDENT]
    written = stablehlo.program(
        finished.student._replace(lower=joined), params, finished.source._replace(inputs=inputs)
    )
    image = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 64)
    found = jax.export.deserialize(bytearray(written)).call(inputs(None, {'image': image}, None))
    np.testing.assert_allclose(found, logits_of(finished, image), atol=1e-6)
