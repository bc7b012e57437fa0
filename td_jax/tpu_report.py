"""What the TPU compiler says of a run's step, without a TPU.

    python -m td_jax.tpu_report --config=configs/vit_imagenet.py --topology=v5e:2x2 --config.td.rounds=2

Compiles the train step of a config for a described set of chips (libtpu does that on any machine) and prints
compile time, memory a device by kind, operations and bytes a device, collectives with their bytes, and
the roofline: the time that operations, memory traffic and communication take at the chip's peak, and which
of them binds. It is a floor, not a prediction. Neither data nor checkpoints are needed.
"""

import json
import math
import os
import re
import time
from typing import NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

from td_jax import command_line, experiment, flops, sharding
from td_jax.errors import UserError


class Chip(NamedTuple):
    """Public figures of a TPU chip: cloud.google.com/tpu/docs, system architecture of each version."""

    operations: float  # bfloat16, a second
    memory: float  # bytes of HBM
    bandwidth: float  # bytes a second to HBM
    links: float  # bytes a second between chips, all links together


CHIPS = {
    'v4': Chip(275e12, 32e9, 1228e9, 300e9),
    'v5e': Chip(197e12, 16e9, 819e9, 200e9),
    'v5p': Chip(459e12, 95e9, 2765e9, 600e9),
    'v6e': Chip(918e12, 32e9, 1640e9, 448e9),
}
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# An instruction: its name, the type of its result, what it does.
_COLLECTIVE = re.compile(rf'\s*(?:ROOT )?%?\S+ = (.*?) ({"|".join(COLLECTIVES)})(-start)?\(')


def topology(name: str):
    """The devices of a topology such as v5e:2x2, described by libtpu.

    Raises:
      UserError: a chip that is not in the table, a topology that libtpu does not know, or no libtpu.
    """
    chip, _, shape = name.partition(':')
    if chip not in CHIPS or not re.fullmatch(r'\d+(x\d+)+', shape):
        raise UserError(
            f'--topology {name!r} is not known; it is a chip, a colon and a grid, as in v5e:2x2. Chips: '
            f'{", ".join(CHIPS)}.'
        )
    # Several of these may compile side by side; none of them uses a TPU.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=name).devices
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'--topology {name} cannot be described: {reason[:200]}. It needs the package libtpu '
            '(requirements-tpu.txt) and a grid that the chip comes in.'
        ) from error


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """{kind: (how many, bytes of their results on a device)} in a compiled program's text."""
    found = {}
    for line in text.splitlines():
        match = _COLLECTIVE.match(line)
        if match:
            types, kind, start = match.groups()
            sizes = _sizes(types)
            # The result of a start is what it was given and what it gives, for all but an all-reduce.
            if start and kind != 'all-reduce':
                sizes = sizes[len(sizes) // 2 :]
            count, total = found.get(kind, (0, 0))
            found[kind] = count + 1, total + sum(sizes)
    return found


def _sizes(types):
    """Bytes of each array in the text of a type."""
    arrays = re.findall(r'(\w+)\[([\d,]*)\]', types)
    return [BYTES.get(kind, 0) * math.prod(int(n) for n in shape.split(',') if n) for kind, shape in arrays]


def report(config, name: str) -> dict:
    """Compiles the step of a config for a topology.

    Args:
      config: of the run.
      name: of the topology.

    Returns:
      What the command prints, as JSON holds it; seconds, operations and bytes, each of one device.
    """
    chip = CHIPS[name.partition(':')[0]]
    devices = topology(name)
    mesh = sharding.make_mesh(config, devices)
    outline = experiment.outline(config, mesh)
    operations = flops.of(outline.compiled, *outline.arguments) / len(devices)
    began = time.perf_counter()
    compiled = outline.compiled.lower(*outline.arguments).compile()
    compile_seconds = time.perf_counter() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found = collectives(compiled.as_text())
    sent = sum(size for _, size in found.values())
    times = {
        'operations': operations / chip.operations,
        'bytes': cost['bytes accessed'] / chip.bandwidth,
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
            'outputs beside arguments': memory.output_size_in_bytes - memory.alias_size_in_bytes,
            'temporaries': memory.temp_size_in_bytes,
            'code': memory.generated_code_size_in_bytes,
        },
        'memory_of_chip': chip.memory,
        'operations': operations,
        'operations_by_compiler': cost['flops'],
        'bytes': cost['bytes accessed'],
        'collectives': {kind: list(value) for kind, value in found.items()},
        # Bytes of all devices together, in float32.
        'parameters': {
            **{group: _parameters(tree) for group, tree in outline.progress.state.params.items()},
            'teacher': _parameters(outline.constants.teacher_params),
        },
        'roofline': {**times, 'binds': binds, 'seconds': times[binds]},
    }


def _parameters(tree):
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def describe(found: dict) -> str:
    """A report for a person."""
    mesh = ', '.join(f'{axis}={size}' for axis, size in found['mesh'].items())
    memory, roofline = found['memory'], found['roofline']
    total = sum(memory.values())
    lines = [
        f'{found["method"]} with {found["rounds"]} rounds, batch {found["batch"]}, {found["compute_dtype"]}, '
        f'on {found["topology"]} ({found["devices"]} devices, {mesh}); all that follows is of one device',
        f'compiled in      {found["compile_seconds"]:.0f} s',
        f'memory           {total / 1e9:.2f} GB of {found["memory_of_chip"] / 1e9:.0f}: '
        + ', '.join(f'{name} {size / 1e9:.2f}' for name, size in memory.items()),
        f'operations       {found["operations"] / 1e9:.0f} G in products, counted from the shapes; the '
        f'compiler counts {found["operations_by_compiler"] / 1e9:.0f} G',
        f'bytes            {found["bytes"] / 1e9:.2f} GB to and from memory',
    ]
    for kind, (count, size) in found['collectives'].items():
        lines.append(f'{kind:16} {count}, {size / 1e6:.1f} MB')
    if not found['collectives']:
        lines.append('collectives      none')
    parts = ', '.join(f'{1000 * roofline[name]:.1f} ms for {name}' for name in list(roofline)[:3])
    lines.append(f'roofline         {1000 * roofline["seconds"]:.1f} ms, {roofline["binds"]} bind: {parts}')
    if found['rounds'] > 2:
        lines.append('note             bytes and collectives count the loop over rounds as one turn')
    return '\n'.join(lines)


def main():
    config = config_flags.DEFINE_config_file('config', None, 'A config file; --config.KEY=VALUE overrides.')
    name = flags.DEFINE_string('topology', None, f'Chips, as in v5e:2x2: {", ".join(CHIPS)}.')
    as_json = flags.DEFINE_bool('json', False, 'Print JSON.')

    def command():
        # Only compiles: no device of this machine is of any use.
        jax.config.update('jax_platforms', 'cpu')
        found = report(config.value, name.value)
        print(json.dumps(found, indent=2) if as_json.value else describe(found))

    command_line.run(command, required=('config', 'topology'))


if __name__ == '__main__':
    main()
