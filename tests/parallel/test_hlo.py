"""The parser of compiled programs, on lines in all the forms that XLA prints."""

import numpy as np
import pytest

from research.parallel.collectives import collectives
from research.parallel.device_groups import axes_of, groups_of, pairs_of
from research.parallel.hlo import Array, bits_of, parse

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%less (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]{0}) parameter(0)
  %limit = s32[] constant(6)
  %number = s32[] get-tuple-element(%state), index=0
  ROOT %is_less = pred[] compare(%number, %limit), direction=LT
}

%body (state.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0:T(256)S(1)} get-tuple-element(%state.1), index=1
  %n = s32[] get-tuple-element(%state.1), index=0
  %started = (f32[4]{0}, f32[4]{0}) all-reduce-start(%x, %x), replica_groups=[4,2]<=[8], \
to_apply=%sum, metadata={op_name="jit(f)/while/body/(psum)" source_file="a {b}.py"}
  %done = (f32[4]{0}, f32[4]{0}) all-reduce-done(%started)
  %y = f32[4]{0} get-tuple-element(%done), index=0
  ROOT %next = (s32[], f32[4]{0}) tuple(%n, /*index=1*/%y)
}

ENTRY %main (p: f32[4], q: bf16[2,8]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %q = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(1), sharding={devices=[2,4]<=[8]}
  %zero = s32[] constant(0)
  %begin = (s32[], f32[4]{0}) tuple(%zero, %p)
  %loop = (s32[], f32[4]{0}) while(%begin), condition=%less, body=%body
  %sent = bf16[2,8]{1,0} collective-permute(%q), source_target_pairs={{0,1},{1,0},{2,2}}
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_instructions_are_read_with_their_sizes_and_calls() -> None:
    program = parse(PROGRAM)
    assert program.entry == "main" and set(program.computations) == {"sum", "less", "body", "main"}
    main = program.computations["main"]
    assert main.instructions["q"].arrays == (Array("bf16", (2, 8)),)
    assert main.instructions["q"].arrays[0].bytes == 32
    assert main.instructions["loop"].attribute("body") == "body"
    assert main.root.name == "out"
    assert sorted(main.parameters) == [0, 1]
    body = program.computations["body"]
    assert [each.name for each in body.users["x"]] == ["started"]
    assert body.instructions["next"].operands == ("n", "y")
    assert body.instructions["started"].source == "jit(f)/while/body/(psum)"
    visited = {visit.instruction.name: visit.times for visit in program.visits()}
    assert (visited["started"], visited["sent"]) == (6, 1)


def test_a_loop_without_a_known_count_is_counted_once_and_says_so() -> None:
    text = PROGRAM.replace("direction=LT", "direction=GT")
    found = {each.kind: each for each in collectives(text, {"data": 4, "tensor": 2})}
    reduction, permute = found["all-reduce"], found["collective-permute"]
    assert (reduction.calls, reduction.is_certain) == (1, False)
    assert (reduction.axes, reduction.payload) == (("tensor",), 32)
    assert permute.is_certain and permute.wire == 32 * 2 / 8  # two of eight devices send


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule nothing\n")


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("pred", 8), ("s4", 4), ("bf16", 16), ("f8e4m3fn", 8), ("c64", 64), ("token", 0)],
)
def test_types_have_their_bits(dtype: str, bits: int) -> None:
    assert bits_of(dtype) == bits


def test_packed_types_round_up_to_bytes() -> None:
    assert Array("s4", (3,)).bytes == 2


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("dimensions={0}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_device_groups_in_all_their_forms(text: str, groups: list[list[int]]) -> None:
    np.testing.assert_array_equal(groups_of(f"channel_id=1, {text}, to_apply=%sum", 4), groups)


@pytest.mark.parametrize("text", ["replica_groups=V2{x}", "replica_groups=[x]"])
def test_an_unknown_form_is_refused_and_not_guessed(text: str) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        groups_of(text, 4)


def test_groups_are_named_by_the_axes_that_they_cross() -> None:
    mesh = {"stage": 1, "data": 2, "tensor": 2}
    assert axes_of(np.array([[0, 1], [2, 3]]), mesh) == ("tensor",)
    assert axes_of(np.array([[0, 2], [1, 3]]), mesh) == ("data",)
    assert axes_of(np.array([[0, 1, 2, 3]]), mesh) == ("data", "tensor")
    assert axes_of(pairs_of("source_target_pairs={{0,3},{3,0}}"), mesh) == ("data", "tensor")
