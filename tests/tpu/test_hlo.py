"""Counting what a compiled program does, against counts made by hand."""

from pathlib import Path

import pytest

from llama_jax.tpu.collectives import collectives
from llama_jax.tpu.hlo import Program
from llama_jax.tpu.liveness import Liveness

TEXT = (Path(__file__).parent / "program.hlo").read_text()
STACK, ROWS = 5 * 8 * 64 * 4, 8 * 64 * 4
SHARD, WHOLE = 16 * 64 * 2, 64 * 64 * 2


def test_a_loop_is_counted_as_often_as_it_runs():
    program = Program(TEXT)
    times = {i.name: n for _, i, n in program.scheduled()}
    assert times["product"] == 5
    assert times["loop"] == times["all-reduce.2"] == 1
    assert program.unknown_loops == []
    assert program.estimated_cycles() == 5 * 120


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("constant(5)", "constant(7)", 7),
        ("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(2)", 3),
        ("%start = s32[]{:T(128)} constant(0)", "%start = s32[]{:T(128)} constant(3)", 2),
    ],
)
def test_trips_follow_from_start_step_and_limit(old, new, trips):
    assert old in TEXT
    times = {i.name: n for _, i, n in Program(TEXT.replace(old, new)).scheduled()}
    assert times["product"] == trips


def test_a_loop_that_does_not_count_is_named():
    program = Program(TEXT.replace("direction=LT", "direction=NE"))
    list(program.scheduled())
    assert program.unknown_loops == ["loop"]


def test_hbm_traffic_counts_slices_and_updates_and_not_what_lies_in_vmem():
    slice_read = SHARD  # the layer's part of the stack; what it makes lies in VMEM
    gather = WHOLE  # its argument lies in VMEM; the second argument is not read
    product = ROWS + WHOLE + ROWS
    update = ROWS + ROWS  # reads the product, writes one layer of the stack in place
    loop = 5 * (slice_read + gather + product + update)
    zeros, reduced, sent = STACK, 2 * STACK, 2 * STACK
    # The update's index, both terms of the add and its result; the zero that fills the stack.
    scalars = 5 * (4 + 4 + 4 + 4) + 4
    assert Program(TEXT).hbm_bytes() == loop + zeros + reduced + sent + scalars


def test_collectives():
    found = {c.kind: c for c in collectives(Program(TEXT), 8)}
    gather, reduce, permute = (found[k] for k in ("all-gather", "all-reduce", "collective-permute"))
    assert (gather.group, gather.payload, gather.times) == ((0, 1, 2, 3), WHOLE, 5)
    assert gather.link_bytes == 5 * WHOLE * 3 / 4
    assert (reduce.group, reduce.times) == ((0, 4), 1)
    assert reduce.link_bytes == 2 * STACK / 2
    assert (permute.group, permute.link_bytes) == ((0, 1), STACK)


@pytest.mark.parametrize(
    ("groups", "group"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,2,2]T(0,2,1)", (0, 2)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("{}", tuple(range(8))),
    ],
)
def test_every_way_to_write_groups(groups, group):
    text = TEXT.replace("[4,2]<=[2,4]T(1,0)", groups)
    (reduce,) = (c for c in collectives(Program(text), 8) if c.kind == "all-reduce")
    assert reduce.group == group


def test_phases_of_one_collective_count_once():
    line = next(line for line in TEXT.splitlines() if "%gathered = " in line)
    twice = TEXT.replace(line, line + "\n" + line.replace("%gathered", "%started"))
    gathers = [c for c in collectives(Program(twice), 8) if c.kind == "all-gather"]
    assert len(gathers) == 1


def test_what_is_live_at_the_peak():
    live = Liveness(Program(TEXT))
    # In the loop: arguments, the stack, gathered weights, the product. The end comes no higher: the
    # arguments, and two of the stack's size, as it is reduced or sent.
    loop = 5 * SHARD + ROWS + STACK + WHOLE + ROWS
    assert loop >= 5 * SHARD + ROWS + 2 * STACK
    assert live.peak == pytest.approx(loop, abs=64)
    kinds = {}
    for buffer in live.buffers:
        kinds[buffer.kind] = kinds.get(buffer.kind, 0) + buffer.size
    assert kinds["argument"] == 5 * SHARD + ROWS
    assert kinds["collective"] == WHOLE
    assert kinds["carried"] == pytest.approx(STACK, abs=64)


OFFLOADED = """\
  %start = ((), (), (s32[64]{0:T(1024)}, s32[8]{0:T(1)S(11)})) custom-call-start(), \
async_execution_thread="sparsecore", called_computations={%gathering}
  %during = ((bf16[16,64]{1,0}, f32[8,64]{1,0}), (bf16[64,64]{1,0}, f32[8,64]{1,0}), \
(s32[64]{0:T(1024)}, s32[8]{0:T(1)S(11)})) custom-call-update(%start, %weight, %rows)
  %both = (bf16[64,64]{1,0}, f32[8,64]{1,0}) custom-call-done(%during)
  %others = f32[8,64]{1,0} get-tuple-element(%both), index=1
  %gathered = bf16[64,64]{1,0} get-tuple-element(%both), index=0
"""


def test_what_sparse_cores_do_is_counted_as_if_the_others_did():
    """As on tpu7x: begun, given its arguments and finished apart; with two results here."""
    line = next(line for line in TEXT.splitlines(keepends=True) if "%gathered = " in line)
    end = "dimensions={0}\n}"
    assert end in TEXT
    text = TEXT.replace(line, OFFLOADED).replace(end, end + ', execution_thread="sparsecore"')
    program = Program(text)
    (gather,) = (c for c in collectives(program, 8) if c.kind == "all-gather")
    assert (gather.group, gather.payload, gather.times) == ((0, 1, 2, 3), WHOLE, 5)
    # Both arguments are read, of which one lay in VMEM before; two results and scratch written.
    more = SHARD + ROWS + ROWS + 64 * 4
    assert program.hbm_bytes() == Program(TEXT).hbm_bytes() + 5 * more
    live, before = Liveness(program), Liveness(Program(TEXT))
    gathered = sum(b.size for b in live.buffers if b.kind == "collective")
    assert gathered == pytest.approx(WHOLE + ROWS, abs=600)
    # Before the product there is as much as with it: its rows are what the second result was.
    assert live.peak == pytest.approx(before.peak, abs=600)


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        Program(TEXT.replace("ENTRY ", ""))
