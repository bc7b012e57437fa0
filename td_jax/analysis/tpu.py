"""What the TPU compiler says of a run's step, without a TPU.

Compiles the train step of a config for a described set of chips (libtpu does that on any machine) and prints
compile time, memory per device by kind, operations and bytes per device, collectives with their bytes, and
the roofline: the time that operations, memory traffic and communication take at the chip's peak, and which
of them binds. It is a floor; the cycles that the compiler expects are a prediction. Neither data nor
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

    operations: float  # bfloat16, a second; one of float32 takes PASSES as many
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second to HBM
    links: float  # bytes per second between chips, all links together
    clock: float  # cycles a second: operations, over those that its matrix units do in a cycle


# A product of float32 is made of so many of bfloat16.
PASSES = {'float32': 6, 'bfloat16': 1}

CHIPS = {
    'v4': Chip(275e12, 32e9, 1228e9, 300e9, 1.05e9),
    'v5e': Chip(197e12, 16e9, 819e9, 200e9, 1.5e9),
    'v5p': Chip(459e12, 95e9, 2765e9, 600e9, 1.75e9),
    'v6e': Chip(918e12, 32e9, 1640e9, 448e9, 1.75e9),
}


def chip_of(name: str) -> str:
    """The name of a topology's chip, v5e of v5e:2x2.

    Raises:
      UserError: a chip that is not in the table, or no grid behind it.
    """
    chip, _, shape = name.partition(':')
    if chip not in CHIPS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', shape):
        raise UserError(
            f'--topology {name!r} is not known; it is a chip, a colon and a grid, as in v5e:2x2. Chips: '
            f'{", ".join(CHIPS)}.'
        )
    return chip


def topology(name: str):
    """The devices of a topology such as v5e:2x2, described by libtpu.

    Raises:
      UserError: a chip that is not in the table, a topology that libtpu does not know, or no libtpu.
    """
    chip = chip_of(name)
    # Several of these may compile side by side; none of them uses a TPU.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    from jax.experimental import topologies

    # Both cores of a v4 as one device, as Cloud TPU runs them; the others have one core, or that by default.
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
      What the command prints, as JSON holds it; seconds, operations and bytes, each of one device.

    Raises:
      UserError: a topology that is not known, or a config that cannot work.
    """
    chip = CHIPS[chip_of(name)]
    config_lib.check(config)
    devices = topology(name)
    mesh = sharding.make_mesh(config, devices)
    abstract = assembly.abstract_images(config, mesh)
    operations = flops.of(abstract.jitted.run, *abstract.arguments) / len(devices)
    began = time.perf_counter()
    compiled = abstract.jitted.run.lower(*abstract.arguments).compile()
    compile_seconds = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    program = hlo.parse(compiled.as_text())
    found, traffic = hlo.count_collectives(program), hlo.count_traffic(program)
    sent, moved = sum(size for _, size in found.values()), traffic.total()
    times = {
        # Those of losses, which are float32 in any case, are few.
        'operations': operations * PASSES[config.compute_dtype] / chip.operations,
        'bytes': moved / chip.bandwidth,
        # Each device sends and receives about twice what it reduces.
        'communication': 2 * sent / chip.links,
    }
    binds = max(times, key=times.get)
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
        'bytes': moved,
        'bytes_by_compiler': cost['bytes accessed'],
        'bytes_by_source': dict(_by_part(traffic).most_common()),
        'collectives': {kind: list(value) for kind, value in found.items()},
        # Bytes of all devices together, in float32.
        'parameters': {
            **{group: _parameters(tree) for group, tree in abstract.progress.state.params.items()},
            'teacher': _parameters(abstract.constants.teacher_params),
        },
        'roofline': {**times, 'binds': binds, 'seconds': times[binds]},
        'seconds_by_compiler': hlo.count_cycles(program) / chip.clock,
    }


def _by_part(traffic):
    """Bytes by part of the step: names of modules and operations, all blocks of a model together."""
    found = collections.Counter()
    for source, size in traffic.items():
        # Of jit(step)/vmap(jvp(ViT.upper))/ViT.run/block_0/mlp_in/dot_general all but the first and the last.
        part = '/'.join(source.split('/')[1:-1]) or 'copies and the like'
        found[re.sub(r'block_\d+', 'block', part)] += size
    return found


def _parameters(tree):
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def describe(found: dict) -> str:
    """A report for a person."""
    mesh = ', '.join(f'{axis}={size}' for axis, size in found['mesh'].items())
    memory, roofline = found['memory'], found['roofline']
    total = sum(memory.values())
    lines = [
        f'{found["method"]} with {found["rounds"]} rounds, batch {found["batch"]}, {found["compute_dtype"]}, '
        f'on {found["topology"]} ({found["devices"]} devices, {mesh}); all that follows is per device',
        f'compiled in      {found["compile_seconds"]:.0f} s',
        f'memory           {total / 1e9:.2f} GB of {found["memory_of_chip"] / 1e9:.0f}: '
        + ', '.join(f'{name} {size / 1e9:.2f}' for name, size in memory.items()),
        f'operations       {found["operations"] / 1e9:.0f} G in products, counted from the shapes; the '
        f'compiler counts {found["operations_by_compiler"] / 1e9:.0f} G',
        f'bytes            {found["bytes"] / 1e9:.2f} GB to and from HBM, as laid out there; the compiler '
        f'counts {found["bytes_by_compiler"] / 1e9:.2f} GB, those to its own vector memory among them',
    ]
    for kind, (count, size) in found['collectives'].items():
        lines.append(f'{kind:16} {count}, {size / 1e6:.1f} MB')
    if not found['collectives']:
        lines.append('collectives      none')
    parts = ', '.join(f'{1000 * roofline[name]:.1f} ms for {name}' for name in list(roofline)[:3])
    lines.append(f'roofline         {1000 * roofline["seconds"]:.1f} ms, {roofline["binds"]} bind: {parts}')
    lines.append(
        f'cycles           {1000 * found["seconds_by_compiler"]:.1f} ms, as the compiler expects them'
    )
    lines.append(
        'most bytes       '
        + ', '.join(
            f'{size / 1e9:.2f} GB {part}' for part, size in list(found['bytes_by_source'].items())[:5]
        )
    )
    if found['rounds'] > 2:
        lines.append('note             what the compiler counts has the loop over rounds as one turn')
    return '\n'.join(lines)
