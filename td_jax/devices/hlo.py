"""What a compiled program does, read from its text: collectives, and traffic to and from memory.

A program is computations of instructions; this reads the scheduled, optimised text that a TPU compiler gives.
A loop counts as often as it turns. An array is as large as its layout makes it: on a TPU the two fastest
axes are padded to whole tiles. An array in memory space 1 lies in the chip's own vector memory, which
is no traffic to HBM; the compiler's own 'bytes accessed' counts it all the same.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What moves nothing: names for parts of other arrays, and the ends of what was counted at its start.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'iota'}

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?')


class Instruction(NamedTuple):
    """One line of a program.

    type: text of the result's type; operation: its name; operands: names; source: the op_name that JAX gave;
    rest: the line after the opening parenthesis; is_root: whether the computation gives its result
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    source: str
    rest: str
    is_root: bool


class Program(NamedTuple):
    """computations: {name: {name: Instruction}}; entry: the name of the one that runs."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Reads the text of `compiled.as_text()`."""
    computations, entry, current = {}, '', None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None:
            found = _INSTRUCTION.match(line)
            if found:
                root, name, kind, operation, rest = found.groups()
                # Layouts hold parentheses, too, but only names of operands begin with %.
                operands = tuple(re.findall(r'%([\w.-]+)', rest.split('), ')[0]))
                source = re.search(r'op_name="([^"]*)"', rest)
                current[name] = Instruction(
                    name, kind, operation, operands, source[1] if source else '', rest, bool(root)
                )
    return Program(computations, entry)


def executed(program: Program) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, how often it runs); of a fusion only the whole.

    Both branches of a conditional count. A loop whose length the compiler does not know counts as one turn.
    """
    waiting = [(program.entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for instruction in program.computations[name].values():
            if instruction.operation == 'while':
                condition, body = re.search(
                    r'condition=%?([\w.-]+), body=%?([\w.-]+)', instruction.rest
                ).groups()
                waiting.append((body, times * _turns(program.computations[condition])))
            elif instruction.operation in ('conditional', 'call'):
                called = re.search(
                    r'(?:branch_computations=\{|to_apply=)([^}\s]*?)(?:\}|,\s|$)', instruction.rest
                )
                waiting += [(branch.strip(' %,'), times) for branch in called[1].split(',') if branch]
            else:
                yield name, instruction, times


def _turns(condition) -> int:
    """How often a loop turns that counts from 0 up to a constant, as a scan does; else 1."""
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    limits = [
        int(condition[name].rest.split(')')[0])
        for name in root.operands
        if root.operation == 'compare' and condition[name].operation == 'constant'
    ]
    return limits[0] if limits and 'direction=LT' in root.rest else 1


def arrays(kind: str) -> list[tuple[int, bool]]:
    """(bytes with the padding of its tiles, whether it lies in HBM) of every array in the text of a type."""
    found = []
    for element, shape, order, layout in _ARRAY.findall(kind):
        sizes = [int(n) for n in shape.split(',') if n]
        tile = re.search(r'T\(([\d,]+)\)', layout)
        if tile and order:
            # Fastest axes first, in `order` as in the tile read backwards.
            tiled = reversed([int(n) for n in tile[1].split(',')])
            for axis, step in zip(map(int, order.split(',')), tiled, strict=False):
                sizes[axis] = -(-sizes[axis] // step) * step
        found.append((BYTES.get(element, 0) * math.prod(sizes), 'S(' not in layout))
    return found


def collectives(program: Program) -> dict[str, tuple[int, int]]:
    """{kind: (how many run, bytes of their results on a device, without padding)}."""
    found = {}
    for _, instruction, times in executed(program):
        kind = instruction.operation.removesuffix('-start')
        if kind in COLLECTIVES:
            sizes = [
                BYTES.get(element, 0) * math.prod(int(n) for n in shape.split(',') if n)
                for element, shape, _, _ in _ARRAY.findall(instruction.type)
            ]
            # The result of a start is what it was given and what it gives, for all but an all-reduce.
            if instruction.operation.endswith('-start') and kind != 'all-reduce':
                sizes = sizes[len(sizes) // 2 :]
            count, total = found.get(kind, (0, 0))
            found[kind] = count + times, total + times * sum(sizes)
    return found


def cycles(program: Program) -> int:
    """Cycles that the compiler expects of a device: the sum of all estimates in the program."""
    found = 0
    for _, instruction, times in executed(program):
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        found += times * int(estimate[1]) if estimate else 0
    return found


def traffic(program: Program) -> collections.Counter:
    """{source: bytes to and from HBM} of all instructions, by the op_name that JAX gave them.

    Every instruction reads its operands and writes its result; of an operand of which it takes slices, the
    slices; of an array that it updates in place, the update.
    """
    found = collections.Counter()
    for computation, instruction, times in executed(program):
        size = _moved(program, program.computations[computation], instruction)
        if size:
            found[instruction.source or instruction.operation] += times * size
    return found


def _moved(program, around, instruction):
    operation = instruction.operation
    if operation in FREE or operation.endswith('-done') or 'ConcatBitcast' in instruction.rest:
        return 0
    if operation in ('copy-start', 'slice-start'):
        # From one memory to the other: the result's type names both, and what moves is the smaller.
        return min(size for size, _ in arrays(instruction.type)[:2])
    fused = re.search(r'calls=%?([\w.-]+)', instruction.rest)
    if operation == 'fusion' and fused:
        inside = program.computations[fused[1]]
    else:
        inside = _as_fusion(around, instruction)
    read = sum(
        _read(inside, instruction.operands, around, parameter)
        for parameter in inside.values()
        if parameter.operation == 'parameter'
    )
    return read + _written(inside, instruction.type)


def _as_fusion(around, instruction):
    """The computation of a fusion of one instruction."""
    names = [f'operand {i}' for i in range(len(instruction.operands))]
    inside = {
        name: Instruction(name, around[operand].type, 'parameter', (), '', f'{i})', False)
        for i, (name, operand) in enumerate(zip(names, instruction.operands, strict=True))
        if operand in around
    }
    inside[instruction.name] = instruction._replace(operands=tuple(names), is_root=True)
    return inside


def _read(inside, operands, around, parameter):
    """Bytes that a fusion reads of one of its operands."""
    number = int(parameter.rest.split(')')[0])
    if number >= len(operands) or operands[number] not in around:
        return 0
    kind = around[operands[number]].type
    in_hbm = sum(size for size, is_there in arrays(kind) if is_there)
    if not in_hbm:
        return 0
    users = [user for user in inside.values() if parameter.name in user.operands]
    if users and all(_takes_part(user, parameter.name) for user in users):
        return min(in_hbm, sum(_part(inside, user) for user in users))
    return in_hbm


def _takes_part(user, name):
    """Whether an instruction reads no more of an array than a slice, or updates one in place."""
    return user.operation in ('dynamic-slice', 'slice', 'gather', 'dynamic-update-slice') and (
        user.operands[0] == name
    )


def _part(inside, user):
    if user.operation == 'dynamic-update-slice':
        return 0  # It writes there, and reads nothing.
    return sum(size for size, _ in arrays(user.type))


def _written(inside, kind):
    """Bytes that a fusion writes: of an update in place, the update."""
    root = next(instruction for instruction in inside.values() if instruction.is_root)
    sizes = arrays(kind)
    is_flat = root.operation == 'tuple' and len(root.operands) == len(sizes)
    names = root.operands if is_flat else (root.name,) * len(sizes)
    total = 0
    for (size, in_hbm), name in zip(sizes, names, strict=True):
        instruction = inside.get(name)
        if in_hbm:
            updates = instruction is not None and instruction.operation == 'dynamic-update-slice'
            update = inside.get(instruction.operands[1]) if updates else None
            total += size if update is None else min(size, sum(part for part, _ in arrays(update.type)))
    return total
