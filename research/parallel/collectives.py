"""What devices send each other in a step, read back from the compiled program.

Every collective is counted as often as the loops around it run, and named by the mesh axes along
which its devices lie. Bytes on the wire are those of `research.parallel.wire`; a collective-permute
of P bytes sends P s/d in the mean, where s of the d devices send to another one.

Where an accelerator has a reduce-scatter the CPU backend prints an all-reduce of which each device
keeps its own slice. That is counted as the reduce-scatter that it stands for; `printed` says so.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from research.parallel.device_groups import axes_of, groups_of, pairs_of
from research.parallel.hlo import Array, Computation, Instruction, Program, Visit, parse
from research.parallel.wire import wire_share

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Collective:
    """An exchange between devices, at one place of a program."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, in its order
    devices: int  # of a group
    calls: int  # a step
    payload: int  # bytes of a call on one device
    wire: float  # bytes of a call that a device sends, in the mean over devices
    dtypes: tuple[str, ...]
    source: str  # in JAX's words
    printed: str = ""  # what the program has in its place, if that is another kind
    branches: tuple[str, ...] = ()  # the conditional branches it lies in: it may not run at all
    is_certain: bool = True  # all trip counts around it are known

    @property
    def total(self) -> float:
        """Bytes that a device sends in a step."""
        return self.calls * self.wire


def collectives(program: Program | str, mesh: Mapping[str, int]) -> list[Collective]:
    """Those of a compiled program (or its text), for a mesh of the sizes `mesh`, in its order."""
    program = parse(program) if isinstance(program, str) else program
    found: list[Collective] = []
    chains: set[tuple[str, ...]] = set()
    for visit in program.visits():
        chain = _chain(visit.instruction)
        if chain is None or chain not in chains:
            found += _read(program, visit, mesh)
            chains.update([chain] if chain else [])
    return found


def in_words(found: list[Collective]) -> str:
    """`2 all-reduce over data, 1 all-gather over fsdp`: calls a step by kind and axes."""
    calls: dict[str, int] = {}
    for each in found:
        kind = f"{each.kind} over {' × '.join(each.axes)}"
        calls[kind] = calls.get(kind, 0) + each.calls
    return ", ".join(f"{number} {kind}" for kind, number in calls.items())


def _chain(instruction: Instruction) -> tuple[str, ...] | None:
    """What the parts of one exchange have in common: TPU programs overlap it with computations, and
    print it in each of the fusions that have a part of it."""
    number = re.search(r'chain_id="(\d+)"', instruction.attributes)
    if number is None:
        return None
    return instruction.opcode, number[1], instruction.attribute("channel_id") or ""


def _read(program: Program, visit: Visit, mesh: Mapping[str, int]) -> Iterator[Collective]:
    instruction = visit.instruction
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return
    devices = math.prod(mesh.values())
    is_permute = kind == "collective-permute"
    groups = (
        pairs_of(instruction.attributes)
        if is_permute
        else groups_of(instruction.attributes, devices)
    )
    if groups.shape[1] < 2 or not groups.size:
        return
    arrays = visit.computation.operands(instruction)
    if kind == "ragged-all-to-all":
        arrays = arrays[:1]  # then come where it goes, and how much
    of_kind: dict[str, list[Array]] = {}
    for number, array in enumerate(arrays):
        effective = kind
        if kind == "all-reduce":
            cut = _cut(program, visit.computation, instruction, number, len(arrays))
            effective = "reduce-scatter" if cut == groups.shape[1] else kind
        of_kind.setdefault(effective, []).append(array)
    for effective, members in of_kind.items():
        size = 1 if is_permute else groups.shape[1]
        payload = sum(array.bytes for array in members)
        payload *= size if effective == "all-gather" else 1
        sends = np.sum(groups[:, 0] != groups[:, -1]) / devices if is_permute else 1.0
        yield Collective(
            effective,
            axes_of(groups, mesh),
            2 if is_permute else size,
            visit.times,
            payload,
            payload * (float(sends) if is_permute else wire_share(effective, size)),
            tuple(sorted({array.dtype for array in members})),
            instruction.source,
            instruction.opcode if effective != kind else "",
            visit.branches,
            visit.is_certain,
        )


def without_slices(found: list[Collective]) -> list[Collective]:
    """As the program is printed: reduce-scatters that are all-reduces on this backend as such."""
    return [
        replace(each, kind=each.printed, wire=2 * each.wire, printed="") if each.printed else each
        for each in found
    ]


# What becomes of a sum -------------------------------------------------------------------------

_SAME_ELEMENTS = ("bitcast", "copy", "transpose", "convert", "reshape", "get-tuple-element")
_Return = tuple[Computation, Instruction]


def _cut(
    program: Program,
    computation: Computation,
    instruction: Instruction,
    number: int,
    count: int,
) -> int:
    """Into how many parts leaf `number` of `count` is cut, of which all its users need one."""
    if count == 1:
        return _parts(program, computation, instruction, ())
    leaves = [
        user
        for user in computation.users[instruction.name]
        if user.opcode == "get-tuple-element" and user.attribute("index") == str(number)
    ]
    return min((_parts(program, computation, leaf, ()) for leaf in leaves), default=1)


def _parts(
    program: Program, computation: Computation, value: Instruction, returns: tuple[_Return, ...]
) -> int:
    """The same of a `value`; `returns` are the fusions around it, innermost last."""
    parts = []
    if value.is_root:
        if not returns or len(value.arrays) != 1:
            return 1
        outer, fusion = returns[-1]
        if len(fusion.arrays) != 1:
            return 1
        parts.append(_parts(program, outer, fusion, returns[:-1]))
    for user in computation.users[value.name]:
        if user.opcode in _SAME_ELEMENTS:
            parts.append(_parts(program, computation, user, returns))
        elif user.opcode == "dynamic-slice" and user.operands[0] == value.name:
            parts.append(value.arrays[0].size // max(user.arrays[0].size, 1))
        elif user.opcode == "fusion":
            inner = program.computations[str(user.attribute("calls"))]
            for place, name in enumerate(user.operands):
                if name == value.name:
                    argument = inner.parameters[place]
                    parts.append(_parts(program, inner, argument, (*returns, (computation, user))))
        else:
            return 1
    return min(parts, default=1)
