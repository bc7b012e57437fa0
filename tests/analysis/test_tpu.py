"""The report on the TPU compiler: parsed programs, and the report on a small step."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from td_jax.analysis import tpu
from td_jax.configs import vit_tiny_cifar10
from td_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
LIBTPU = ROOT / '.venv' / 'libtpu'


@pytest.mark.parametrize('name', ['nosuch', 'v5e', 'v5e:', 'v9:2x2', 'v5e:2-2', 'v5e:axb', 'v5e:0x2'])
def test_an_unknown_topology_is_refused(name):
    with pytest.raises(UserError, match='--topology') as error_info:
        tpu.report(vit_tiny_cifar10.get_config(), name)
    assert 'v5e:2x2' in str(error_info.value)
    assert '\n' not in str(error_info.value)


# The cases of the reports below: a student of one block, a teacher of two, and 16 examples per chip.
# The compiler's time goes into code, and five tokens with one head take half as much as the config's sizes.
SCRIPT = """
import json, sys
import jax
jax.config.update('jax_platforms', 'cpu')
from td_jax.configs import vit_tiny_cifar10
from td_jax.analysis import tpu
reports = []
for name, batch, rounds, fsdp in json.loads(sys.argv[1]):
    config = vit_tiny_cifar10.get_config()
    config.num_seeds, config.batch_size, config.td.rounds, config.mesh.fsdp = 1, batch, rounds, fsdp
    config.mesh.data = -1
    config.dataset.examples_per_class = 0
    config.model.layers, config.model.split = 1, 1
    config.teacher.model.layers, config.teacher.model.split = 2, 1
    config.dataset.image_size = 16
    for model in (config.model, config.teacher.model):
        model.heads, model.mlp = 1, 128
    reports.append(tpu.report(config, name))
devices = {name: len(tpu.describe_topology(name)) for name in ('v4:2x2x1', 'v5p:2x2x1', 'v6e:2x2')}

from jax.sharding import SingleDeviceSharding
from td_jax.devices import hlo, precision

cycles = {}
for dtype in ('float32', 'bfloat16'):
    sharding = SingleDeviceSharding(tpu.describe_topology('v5e:2x2')[0])
    one = jax.ShapeDtypeStruct((1024, 1024), dtype, sharding=sharding)
    for name, function in (('plain', jax.numpy.matmul), ('exact', precision.exact(jax.numpy.matmul))):
        compiled = jax.jit(lambda a, b, function=function: function(a, b)).lower(one, one).compile()
        cycles[f'{name} {dtype}'] = hlo.count_cycles(hlo.parse(compiled.as_text()))
print(json.dumps([reports, devices, cycles]))
"""
CASES = [
    ('v5e:2x2', 64, 1, 1),
    ('v5e:4x4', 256, 1, 1),
    ('v5e:2x2', 64, 1, 4),
    ('v5e:2x2', 64, 3, 1),
    ('v5e:2x2', 64, 6, 1),
]


@pytest.fixture(scope='module')
def reports():
    """The reports on all cases, from a process of its own, because libtpu cannot be unloaded."""
    if not LIBTPU.is_dir():
        pytest.skip('libtpu is not in .venv/libtpu; launch/test.sh --setup-only puts it there')
    # XLA_FLAGS of the tests are for CPUs, and libtpu exits at a flag that it does not know.
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    completed = subprocess.run(
        [sys.executable, '-c', SCRIPT, json.dumps(CASES)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**environment, 'PYTHONPATH': f'{ROOT}:{LIBTPU}'},
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    all_reports, devices, cycles = json.loads(completed.stdout.splitlines()[-1])
    return {'devices': devices, 'cycles': cycles, **dict(zip(CASES, all_reports, strict=True))}


@pytest.mark.long
def test_a_device_is_a_chip(reports):
    """The numbers in CHIPS are for a whole chip."""
    assert set(reports['devices'].values()) == {4}


@pytest.mark.long
def test_products_of_float32_take_six_passes_and_those_of_bfloat16_one(reports):
    """By default, products of float32 are computed in bfloat16, and take as long."""
    cycles = reports['cycles']
    # A float32 product reads twice the bytes.
    assert cycles['plain float32'] == pytest.approx(cycles['plain bfloat16'], rel=0.1)
    assert 3 < cycles['exact float32'] / cycles['plain float32'] <= tpu.PASSES['float32']
    assert cycles['exact bfloat16'] == cycles['plain bfloat16']


@pytest.mark.long
def test_operations_a_device_do_not_change_as_batch_and_devices_grow(reports):
    small_report, large_report = reports[CASES[0]], reports[CASES[1]]
    assert (small_report['devices'], large_report['devices']) == (4, 16)
    assert large_report['operations'] == pytest.approx(small_report['operations'])
    assert large_report['operations_by_compiler'] == pytest.approx(
        small_report['operations_by_compiler'], rel=0.02
    )


@pytest.mark.long
@pytest.mark.parametrize('case', [CASES[0], CASES[1]])
def test_data_parallel_devices_sum_trained_parameters_and_metrics_and_nothing_else(reports, case):
    report = reports[case]
    assert set(report['collectives']) == {'all-reduce'}
    _, size = report['collectives']['all-reduce']
    student, communication, teacher = (
        report['parameters'][group] for group in ('student', 'communication', 'teacher')
    )
    # The gradient is in float32. A communication module that is used twice, in the first message and in a
    # round, may be summed twice; apart from that, only a few metrics are summed.
    assert student + communication <= size <= student + 2 * communication + 1024
    assert size < student + communication + teacher


@pytest.mark.long
def test_a_conversation_sends_nothing_else(reports):
    """Also in the loop over rounds, in which the teacher computes, there are only sums."""
    assert set(reports[CASES[3]]['collectives']) == {'all-reduce'}


@pytest.mark.long
def test_fsdp_keeps_less_and_gathers(reports):
    replicated, sharded = reports[CASES[0]], reports[CASES[2]]
    assert sharded['memory']['arguments'] < replicated['memory']['arguments']
    assert set(sharded['collectives']) & {'all-gather', 'reduce-scatter', 'all-to-all'}


@pytest.mark.long
def test_a_longer_conversation_is_not_a_larger_program(reports):
    three, six = reports[CASES[3]], reports[CASES[4]]
    assert six['operations'] > 1.5 * three['operations']
    # The loop has five iterations instead of two; here its body fits in vector memory.
    assert six['seconds_by_compiler'] > 1.1 * three['seconds_by_compiler']
    assert six['memory']['code'] == pytest.approx(three['memory']['code'], rel=0.1)
    assert six['operations_by_compiler'] == pytest.approx(three['operations_by_compiler'], rel=0.05)


@pytest.mark.long
def test_the_roofline_is_what_takes_longest(reports):
    report = reports[CASES[0]]
    chip, times = tpu.CHIPS['v5e'], report['roofline']
    # float32 takes six passes.
    assert times['operations'] == pytest.approx(6 * report['operations'] / chip.operations)
    assert times['bytes'] == pytest.approx(report['bytes'] / chip.bandwidth)
    assert sum(report['bytes_by_source'].values()) == report['bytes']
    # Data in the chip's vector memory does not count as traffic, but padding does.
    assert 0.1 < report['bytes'] / report['bytes_by_compiler'] < 2
    assert report['seconds_by_compiler'] > times['seconds']
    assert (
        times['seconds']
        == times[times['binds']]
        == max(times['operations'], times['bytes'], times['communication'])
    )
    text = tpu.describe(report)
    assert f'{1000 * times["seconds"]:.1f} ms, {times["binds"]} bind' in text
    assert 'all-reduce' in text
