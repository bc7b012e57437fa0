"""Reports what the TPU compiler predicts for a run's step, without a TPU.

It compiles the training step of a config for a described topology, which libtpu can do on any machine. It
prints compile time, memory per device by kind, operations and bytes per device, collectives with their bytes,
and the roofline: the times of operations, memory traffic and communication at the chip's peak, and the
largest of them. The roofline is a lower bound; the cycles by the compiler are a prediction. Neither data nor
checkpoints are needed.
"""

import collections
import math
import os
import re
import time
from typing import NamedTuple

import jax

from td_jax import config as config_lib
from td_jax.devices import flops, hlo, sharding
from td_jax.errors import UserError
from td_jax.training import assembly


class Chip(NamedTuple):
    """Public figures of a TPU chip: cloud.google.com/tpu/docs, system architecture of each version."""

    operations: float  # in bfloat16, per second; one in float32 takes PASSES as many
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second to HBM
    links: float  # bytes per second between chips, over all links
    clock: float  # cycles per second: operations over those of its matrix units per cycle


# Number of bfloat16 products in one product of a type.
PASSES = {'float32': 6, 'bfloat16': 1}

CHIPS = {
    'v4': Chip(275e12, 32e9, 1228e9, 300e9, 1.05e9),
    'v5e': Chip(197e12, 16e9, 819e9, 200e9, 1.5e9),
    'v5p': Chip(459e12, 95e9, 2765e9, 600e9, 1.75e9),
    'v6e': Chip(918e12, 32e9, 1640e9, 448e9, 1.75e9),
}


def parse_chip(name: str) -> str:
    """Parses the name of a topology's chip: v5e from v5e:2x2.

    Raises:
      UserError: an unknown chip, or no grid after it.
    """
    chip, _, shape = name.partition(':')
    if chip not in CHIPS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', shape):
        raise UserError(
            f'--topology {name!r} is not known; it is a chip, a colon and a grid, as in v5e:2x2. Chips: '
            f'{", ".join(CHIPS)}.'
        )
    return chip


def describe_topology(name: str):
    """Describes the devices of a topology such as v5e:2x2 by libtpu.

    Raises:
      UserError: an unknown chip, a topology that libtpu does not know, or no libtpu.
    """
    chip = parse_chip(name)
    # Several processes may compile at once; none of them uses a TPU.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    from jax.experimental import topologies

    # Cloud TPU runs both cores of a v4 as one device; for other chips, this is the default.
    options = {'chip_config_name': 'megacore'} if chip == 'v4' else {}
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'--topology {name} cannot be described: {reason[:200]}. It needs the package libtpu '
            '(requirements-tpu.txt) and a grid that the chip comes in.'
        ) from error


def report(config, name: str) -> dict:
    """Compiles the step of a config for a topology.

    Args:
      config: of the run.
      name: of the topology.

    Returns:
      the content of the report for JSON; seconds, operations and bytes are per device

    Raises:
      UserError: an unknown topology, or an invalid config.
    """
    chip = CHIPS[parse_chip(name)]
    config_lib.check(config)
    devices = describe_topology(name)
    mesh = sharding.make_mesh(config, devices)
    abstract = assembly.abstract_images(config, mesh)
    operations = flops.of(abstract.jitted.run, *abstract.arguments) / len(devices)
    start = time.perf_counter()
    compiled = abstract.jitted.run.lower(*abstract.arguments).compile()
    compile_seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    program = hlo.parse(compiled.as_text())
    collectives, traffic = hlo.count_collectives(program), hlo.count_traffic(program)
    bytes_reduced, bytes_moved = sum(size for _, size in collectives.values()), traffic.total()
    times = {
        # Losses are always float32, but have few operations.
        'operations': operations * PASSES[config.compute_dtype] / chip.operations,
        'bytes': bytes_moved / chip.bandwidth,
        # Each device sends and receives about twice the bytes that it reduces.
        'communication': 2 * bytes_reduced / chip.links,
    }
    bound = max(times, key=times.get)
    return {
        'topology': name,
        'devices': len(devices),
        'mesh': dict(mesh.shape),
        'batch': config.batch_size,
        'method': config.method,
        'rounds': config.td.rounds,
        'compute_dtype': config.compute_dtype,
        'compile_seconds': compile_seconds,
        'memory': {
            'arguments': memory.argument_size_in_bytes,
            'outputs without donated arguments': memory.output_size_in_bytes - memory.alias_size_in_bytes,
            'temporaries': memory.temp_size_in_bytes,
            'code': memory.generated_code_size_in_bytes,
        },
        'memory_of_chip': chip.memory,
        'operations': operations,
        'operations_by_compiler': cost['flops'],
        'bytes': bytes_moved,
        'bytes_by_compiler': cost['bytes accessed'],
        'bytes_by_source': dict(_sum_by_part(traffic).most_common()),
        'collectives': {kind: list(value) for kind, value in collectives.items()},
        # In bytes over all devices, in float32.
        'parameters': {
            **{group: _parameter_bytes(tree) for group, tree in abstract.progress.state.params.items()},
            'teacher': _parameter_bytes(abstract.constants.teacher_params),
        },
        'roofline': {**times, 'binds': bound, 'seconds': times[bound]},
        'seconds_by_compiler': hlo.count_cycles(program) / chip.clock,
    }


def _sum_by_part(traffic):
    """Sums bytes by part of the step, named by modules and operations; all blocks of a model are one part."""
    bytes_by_part = collections.Counter()
    for source, size in traffic.items():
        # Drops the first and the last part of names such as
        # jit(step)/vmap(jvp(ViT.upper))/ViT.run/block_0/mlp_in/dot_general.
        part = '/'.join(source.split('/')[1:-1]) or 'copies and the like'
        bytes_by_part[re.sub(r'block_\d+', 'block', part)] += size
    return bytes_by_part


def _parameter_bytes(tree):
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def describe(step: dict) -> str:
    """Renders a report as text."""
    mesh = ', '.join(f'{axis}={size}' for axis, size in step['mesh'].items())
    memory, roofline = step['memory'], step['roofline']
    total = sum(memory.values())
    lines = [
        f'{step["method"]} with {step["rounds"]} rounds, batch {step["batch"]}, {step["compute_dtype"]}, '
        f'on {step["topology"]} ({step["devices"]} devices, {mesh}); all that follows is per device',
        f'compiled in      {step["compile_seconds"]:.0f} s',
        f'memory           {total / 1e9:.2f} GB of {step["memory_of_chip"] / 1e9:.0f}: '
        + ', '.join(f'{name} {size / 1e9:.2f}' for name, size in memory.items()),
        f'operations       {step["operations"] / 1e9:.0f} G in products, counted from the shapes; the '
        f'compiler counts {step["operations_by_compiler"] / 1e9:.0f} G',
        f'bytes            {step["bytes"] / 1e9:.2f} GB to and from HBM, as laid out there; the compiler '
        f'counts {step["bytes_by_compiler"] / 1e9:.2f} GB, those to its own vector memory among them',
    ]
    for kind, (count, size) in step['collectives'].items():
        lines.append(f'{kind:16} {count}, {size / 1e6:.1f} MB')
    if not step['collectives']:
        lines.append('collectives      none')
    parts = ', '.join(f'{1000 * roofline[name]:.1f} ms for {name}' for name in list(roofline)[:3])
    lines.append(f'roofline         {1000 * roofline["seconds"]:.1f} ms, {roofline["binds"]} bind: {parts}')
    lines.append(
        f'cycles           {1000 * step["seconds_by_compiler"]:.1f} ms, as the compiler expects them'
    )
    lines.append(
        'most bytes       '
        + ', '.join(f'{size / 1e9:.2f} GB {part}' for part, size in list(step['bytes_by_source'].items())[:5])
    )
    if step['rounds'] > 2:
        lines.append('note             what the compiler counts has the loop over rounds as one turn')
    return '\n'.join(lines)
