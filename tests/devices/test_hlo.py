"""Parsing compiled programs: a case by hand, and a program of this machine's compiler."""

import jax
import jax.numpy as jnp

from td_jax.devices import hlo

# Three turns of a loop between a copy and a sum over devices. Worked by hand, in bytes:
#   start   moves f32[8,128] into vector memory: 4096 of HBM
#   wide    reads bf16[3,100], in tiles of 8 by 128 with the first axis fastest: 104 * 128 * 2 = 26624,
#           and writes bf16[100]: 128 * 2 = 256
#   turn    reads a slice f32[1,128] of its f32[3,128] (512) and updates a row of another in place (512);
#           each is a tile of 1 by 128 here
#   add     is in vector memory on both sides: nothing
#   sums    reads and writes f32[4,32], 4 * 128 * 4 = 2048 each, and bf16[10], 256 each
PROGRAM = """HloModule step, is_scheduled=true

%slice_and_update (a: f32[3,128], b: f32[3,128], i: s32[]) -> f32[3,128] {
  %a = f32[3,128]{1,0:T(1,128)} parameter(0)
  %b = f32[3,128]{1,0:T(1,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,128]{1,0:T(1,128)} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,128}
  ROOT %put = f32[3,128]{1,0:T(1,128)} dynamic-update-slice(%b, %row, %i, %zero)
}

%body (state: (s32[], f32[3,128], f32[3,128])) -> (s32[], f32[3,128], f32[3,128]) {
  %state = (s32[]{:T(128)S(6)}, f32[3,128]{1,0:T(1,128)}, f32[3,128]{1,0:T(1,128)}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %a.1 = f32[3,128]{1,0:T(1,128)} get-tuple-element(%state), index=1
  %b.1 = f32[3,128]{1,0:T(1,128)} get-tuple-element(%state), index=2
  %turn = f32[3,128]{1,0:T(1,128)} fusion(%a.1, %b.1, %i.1), kind=kLoop, calls=%slice_and_update, \
metadata={op_name="jit(step)/while/body/put"}, backend_config={"estimated_cycles":"7"}
  ROOT %next = (s32[]{:T(128)S(6)}, f32[3,128]{1,0:T(1,128)}, f32[3,128]{1,0:T(1,128)}) \\
tuple(%i.1, %a.1, %turn)
}

%condition (state: (s32[], f32[3,128], f32[3,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)S(6)}, f32[3,128]{1,0:T(1,128)}, f32[3,128]{1,0:T(1,128)}) parameter(0)
  %i.2 = s32[]{:T(128)S(6)} get-tuple-element(%state.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %more = pred[]{:T(512)} compare(%i.2, %three), direction=LT
}

ENTRY %main (x: f32[8,128], y: bf16[3,100], s: (s32[], f32[3,128], f32[3,128])) -> f32[4,32] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = bf16[3,100]{0,1:T(8,128)(2,1)} parameter(1)
  %s = (s32[]{:T(128)S(6)}, f32[3,128]{1,0:T(1,128)}, f32[3,128]{1,0:T(1,128)}) parameter(2)
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %add = f32[8,128]{1,0:T(8,128)S(1)} add(%done, %done), metadata={op_name="jit(step)/add"}
  %wide = bf16[100]{0:T(128)(2,1)} reduce(%y), dimensions={0}, metadata={op_name="jit(step)/wide/sum"}
  %loop = (s32[]{:T(128)S(6)}, f32[3,128]{1,0:T(1,128)}, f32[3,128]{1,0:T(1,128)}) while(%s), \
condition=%condition, body=%body
  %p = f32[4,32]{1,0:T(4,128)} constant({...})
  %q = bf16[10]{0:T(128)(2,1)} constant({...})
  %sums = (f32[4,32]{1,0:T(4,128)}, /*index=1*/bf16[10]{0:T(128)(2,1)}) all-reduce(%p, %q), channel_id=1, \
metadata={op_name="jit(step)/sums"}, backend_config={"estimated_cycles":"100"}
  %gather-start = (f32[8]{0:T(128)S(1)}, f32[32]{0:T(128)S(1)}) all-gather-start(%p), dimensions={0}
  %gather-done = f32[32]{0:T(128)S(1)} all-gather-done(%gather-start)
  ROOT %result = f32[4,32]{1,0:T(4,128)} get-tuple-element(%sums), index=0
}
"""


def test_traffic_is_what_instructions_read_and_write_in_hbm():
    traffic = hlo.count_traffic(hlo.parse(PROGRAM))
    assert traffic == {
        'copy-start': 4096,
        'jit(step)/wide/sum': 26624 + 256,
        'jit(step)/while/body/put': 3 * (512 + 512),
        'jit(step)/sums': 2 * (2048 + 256),
        # It gathers the 2048 bytes that the sums read into vector memory.
        'all-gather-start': 2048,
    }


def test_a_loop_runs_as_often_as_it_turns():
    turns = {
        instruction.name: times for _, instruction, times in hlo.executed_instructions(hlo.parse(PROGRAM))
    }
    assert (turns['turn'], turns['add']) == (3, 1)
    assert hlo.count_cycles(hlo.parse(PROGRAM)) == 3 * 7 + 100


def test_collectives_are_counted_without_padding():
    # 4 * 32 floats and 10 halves; a start counts its result, and its end counts nothing.
    assert hlo.count_collectives(hlo.parse(PROGRAM)) == {'all-reduce': (1, 532), 'all-gather': (1, 128)}


def test_a_program_of_a_real_compiler_moves_what_its_shapes_say():
    """Without tiles, vector memory and fusions: a product reads two matrices and writes one."""
    a, b = jnp.zeros((96, 64)), jnp.zeros((64, 32))
    program = hlo.parse(jax.jit(jnp.matmul).lower(a, b).compile().as_text())
    assert hlo.count_traffic(program).total() == 4 * (96 * 64 + 64 * 32 + 96 * 32)
