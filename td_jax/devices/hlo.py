"""What a compiled program does, read from its text: collectives, and traffic to and from memory.

A program consists of computations, and these of instructions; this reads the scheduled, optimised text of a
TPU compiler. A loop counts once per iteration. Sizes include the padding of the layout: on a TPU the two
fastest axes are padded to whole tiles. An array in memory space 1 lies in the chip's vector memory and is no
traffic to HBM, though the compiler's own 'bytes accessed' counts it.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8}
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Operations that move nothing: names for parts of other arrays, and ends of operations counted at their
# start.
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
            match = _INSTRUCTION.match(line)
            if match:
                root, name, kind, operation, rest = match.groups()
                # Layouts hold parentheses, too, but only names of operands begin with %.
                operands = tuple(re.findall(r'%([\w.-]+)', rest.split('), ')[0]))
                source = re.search(r'op_name="([^"]*)"', rest)
                current[name] = Instruction(
                    name, kind, operation, operands, source[1] if source else '', rest, bool(root)
                )
    return Program(computations, entry)


def executed_instructions(program: Program) -> Iterator[tuple[str, Instruction, int]]:
    """Yields (computation, instruction, how often it runs); a fusion is one instruction.

    Both branches of a conditional count. A loop whose length the compiler does not know counts as one
    iteration.
    """
    pending = [(program.entry, 1)]
    while pending:
        name, times = pending.pop()
        for instruction in program.computations[name].values():
            if instruction.operation == 'while':
                condition, body = re.search(
                    r'condition=%?([\w.-]+), body=%?([\w.-]+)', instruction.rest
                ).groups()
                pending.append((body, times * _count_turns(program.computations[condition])))
            elif instruction.operation in ('conditional', 'call'):
                called = re.search(
                    r'(?:branch_computations=\{|to_apply=)([^}\s]*?)(?:\}|,\s|$)', instruction.rest
                )
                pending += [(branch.strip(' %,'), times) for branch in called[1].split(',') if branch]
            else:
                yield name, instruction, times


def _count_turns(condition) -> int:
    """Counts the iterations of a loop that runs from 0 up to a constant, as a scan does; else 1."""
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    limits = [
        int(condition[name].rest.split(')')[0])
        for name in root.operands
        if root.operation == 'compare' and condition[name].operation == 'constant'
    ]
    return limits[0] if limits and 'direction=LT' in root.rest else 1


def array_sizes(kind: str) -> list[tuple[int, bool]]:
    """(bytes with padding, whether it lies in HBM) of every array in the text of a type."""
    byte_sizes = []
    for element, shape, order, layout in _ARRAY.findall(kind):
        sizes = [int(n) for n in shape.split(',') if n]
        tile = re.search(r'T\(([\d,]+)\)', layout)
        if tile and order:
            # Fastest axes first, in `order` as in the tile read backwards.
            tile_sizes = reversed([int(n) for n in tile[1].split(',')])
            for axis, step in zip(map(int, order.split(',')), tile_sizes, strict=False):
                sizes[axis] = -(-sizes[axis] // step) * step
        byte_sizes.append((BYTES.get(element, 0) * math.prod(sizes), 'S(' not in layout))
    return byte_sizes


def count_collectives(program: Program) -> dict[str, tuple[int, int]]:
    """Counts collectives: {kind: (how many run, bytes of their results on a device, without padding)}."""
    totals = {}
    for _, instruction, times in executed_instructions(program):
        kind = instruction.operation.removesuffix('-start')
        if kind in COLLECTIVES:
            sizes = [
                BYTES.get(element, 0) * math.prod(int(n) for n in shape.split(',') if n)
                for element, shape, _, _ in _ARRAY.findall(instruction.type)
            ]
            # Except for an all-reduce, the result of a start holds the operands, then the results.
            if instruction.operation.endswith('-start') and kind != 'all-reduce':
                sizes = sizes[len(sizes) // 2 :]
            count, total = totals.get(kind, (0, 0))
            totals[kind] = count + times, total + times * sum(sizes)
    return totals


def count_cycles(program: Program) -> int:
    """Sums the compiler's estimates of cycles on a device over the program."""
    total = 0
    for _, instruction, times in executed_instructions(program):
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        total += times * int(estimate[1]) if estimate else 0
    return total


def count_traffic(program: Program) -> collections.Counter:
    """Counts bytes to and from HBM of all instructions, {source: bytes}, by the op_name that JAX gave them.

    Every instruction reads its operands and writes its result. Where it takes slices of an operand, the
    slices count; where it updates an array in place, the update counts.
    """
    num_bytes = collections.Counter()
    for computation, instruction, times in executed_instructions(program):
        size = _count_moved_bytes(program, program.computations[computation], instruction)
        if size:
            num_bytes[instruction.source or instruction.operation] += times * size
    return num_bytes


def _count_moved_bytes(program, around, instruction):
    operation = instruction.operation
    if operation in FREE or operation.endswith('-done') or 'ConcatBitcast' in instruction.rest:
        return 0
    if operation in ('copy-start', 'slice-start'):
        # From one memory to the other: the result's type names both, and what moves is the smaller.
        return min(size for size, _ in array_sizes(instruction.type)[:2])
    fused = re.search(r'calls=%?([\w.-]+)', instruction.rest)
    if operation == 'fusion' and fused:
        inside = program.computations[fused[1]]
    else:
        inside = _wrap_as_fusion(around, instruction)
    bytes_read = sum(
        _count_read_bytes(inside, instruction.operands, around, parameter)
        for parameter in inside.values()
        if parameter.operation == 'parameter'
    )
    return bytes_read + _count_written_bytes(inside, instruction.type)


def _wrap_as_fusion(around, instruction):
    """Wraps one instruction in the computation of a fusion."""
    names = [f'operand {i}' for i in range(len(instruction.operands))]
    inside = {
        name: Instruction(name, around[operand].type, 'parameter', (), '', f'{i})', False)
        for i, (name, operand) in enumerate(zip(names, instruction.operands, strict=True))
        if operand in around
    }
    inside[instruction.name] = instruction._replace(operands=tuple(names), is_root=True)
    return inside


def _count_read_bytes(inside, operands, around, parameter):
    """Counts the bytes that a fusion reads of one of its operands."""
    number = int(parameter.rest.split(')')[0])
    if number >= len(operands) or operands[number] not in around:
        return 0
    kind = around[operands[number]].type
    in_hbm = sum(size for size, is_there in array_sizes(kind) if is_there)
    if not in_hbm:
        return 0
    users = [user for user in inside.values() if parameter.name in user.operands]
    if users and all(_reads_part(user, parameter.name) for user in users):
        return min(in_hbm, sum(_count_part_bytes(inside, user) for user in users))
    return in_hbm


def _reads_part(user, name):
    """Whether an instruction reads no more of an array than a slice, or updates one in place."""
    return user.operation in ('dynamic-slice', 'slice', 'gather', 'dynamic-update-slice') and (
        user.operands[0] == name
    )


def _count_part_bytes(inside, user):
    if user.operation == 'dynamic-update-slice':
        return 0  # It writes there, and reads nothing.
    return sum(size for size, _ in array_sizes(user.type))


def _count_written_bytes(inside, kind):
    """Counts the bytes that a fusion writes; an update in place counts as the update."""
    root = next(instruction for instruction in inside.values() if instruction.is_root)
    sizes = array_sizes(kind)
    is_flat = root.operation == 'tuple' and len(root.operands) == len(sizes)
    names = root.operands if is_flat else (root.name,) * len(sizes)
    total = 0
    for (size, in_hbm), name in zip(sizes, names, strict=True):
        instruction = inside.get(name)
        if in_hbm:
            updates = instruction is not None and instruction.operation == 'dynamic-update-slice'
            update = inside.get(instruction.operands[1]) if updates else None
            total += size if update is None else min(size, sum(part for part, _ in array_sizes(update.type)))
    return total
