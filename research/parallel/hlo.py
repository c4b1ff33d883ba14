"""The text of a compiled program, as computations and instructions.

What `jax.stages.Compiled.as_text()` prints is XLA's HLO after all its passes: what a device does,
instruction by instruction. Here only so much of it is read as it takes to follow the calls, to
multiply by the trip counts of loops, and to know the sizes of what an instruction takes and gives.

    %all-gather.3 = f32[64,64]{1,0} all-gather(%fusion.7), replica_groups=[4,2]<=[8], dimensions={0}
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Of the types whose name does not end in their number of bits."""


@dataclass(frozen=True)
class Array:
    """Type and sizes, as HLO writes them: `bf16[8,128]`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes on one device, without padding."""
        return -(-self.size * bits_of(self.dtype) // 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # what it gives: one, or the leaves of a tuple
    operands: tuple[str, ...]
    attributes: str  # all that follows the operands
    is_root: bool = False

    def attribute(self, name: str) -> str | None:
        """The value of an attribute without brackets, such as `body` of a loop."""
        found = re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)
        return found[1] if found else None

    @property
    def source(self) -> str:
        """What it came from, in JAX's words (`op_name`)."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass
class Computation:
    """A function of a program: instructions by name, in the order in which they are printed."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def operands(self, instruction: Instruction) -> list[Array]:
        """What an instruction takes, the leaves of tuples one by one."""
        return [array for name in instruction.operands for array in self.instructions[name].arrays]

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Which instructions take what an instruction gives."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                users[name].append(instruction)
        return users

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its arguments by number."""
        return {
            int(each.attributes.split(")", 1)[0].lstrip("(")): each
            for each in self.instructions.values()
            if each.opcode == "parameter"
        }

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(each for each in self.instructions.values() if each.is_root)


@dataclass(frozen=True)
class Visit:
    """An instruction as a run of the program meets it."""

    instruction: Instruction
    computation: Computation
    times: int  # product of the trip counts of the loops around it
    unknown: int  # loops around it whose count is not known, and counts as 1
    branches: tuple[str, ...]  # the conditional branches that it lies in, outermost first

    @property
    def is_certain(self) -> bool:
        """Whether it is met so many times."""
        return self.unknown == 0


@dataclass(frozen=True)
class Program:
    """The computations of a compiled program."""

    computations: dict[str, Computation]
    entry: str

    def visits(self) -> Iterator[Visit]:
        """Every instruction that one run meets, in the order of the text, calls followed."""
        yield from self._visits(self.entry, 1, 0, ())

    def _visits(
        self, name: str, times: int, unknown: int, branches: tuple[str, ...]
    ) -> Iterator[Visit]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield Visit(instruction, computation, times, unknown, branches)
            opcode = instruction.opcode
            if opcode == "while":
                trips = self.trips(instruction)
                more = times * (1 if trips is None else trips)
                body = str(instruction.attribute("body"))
                yield from self._visits(body, more, unknown + (trips is None), branches)
            elif opcode == "conditional":
                for branch in branches_of(instruction):
                    yield from self._visits(branch, times, unknown, (*branches, branch))
            elif opcode in ("call", "fusion", "async-start"):
                called = instruction.attribute("calls") or instruction.attribute("to_apply")
                if called is not None:
                    yield from self._visits(called, times, unknown, branches)

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs its body: as XLA has noted, or as a counter that begins at 0 is
        compared with a constant; None where neither says."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self.computations[str(loop.attribute("condition"))]
        root = condition.root
        if root.opcode == "fusion":
            root = self.computations[str(root.attribute("calls"))].root
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        constants = [each for each in condition.instructions.values() if each.opcode == "constant"]
        values = [re.match(r"\((\d+)\)", each.attributes) for each in constants]
        return int(values[0][1]) if len(values) == 1 and values[0] else None


def branches_of(conditional: Instruction) -> list[str]:
    """The computations of which a `conditional` runs one."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    both = (conditional.attribute(f"{value}_computation") for value in ("true", "false"))
    return [name for name in both if name is not None]


def bits_of(dtype: str) -> int:
    """Bits of an element of HLO's type `dtype`: `f32`, `bf16`, `s4`, `f8e4m3fn`."""
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    if found is None:
        raise ValueError(f"HLO has no type {dtype}")
    return int(found[1])


def parse(text: str) -> Program:
    """The program that XLA printed as `text`. Raises ValueError where it has no entry."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head:
                current = computations[head[2]] = Computation(head[2])
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _instruction(line)
            if instruction is not None:
                current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return Program(computations, entry)


# Names and shapes, with the layouts that may hold brackets of their own: {1,0:T(8,128)S(1)}.
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]")
_OPERAND = re.compile(r"%([\w.-]+)")


def _instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    end = _end_of_shape(line, head.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    arrays = tuple(
        Array(name, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for name, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", line[head.end() : end]))
    )
    # Constants and parameters have no operands, but a value or a number in their place.
    operands = tuple(_OPERAND.findall(inside))
    attributes = line[close + 1 :] if operands else line[opcode.end() - 1 :]
    return Instruction(head[2], opcode[1], arrays, operands, attributes, bool(head[1]))


def _end_of_shape(line: str, start: int) -> int:
    if line[start] == "(":
        return _closing(line, start) + 1
    brace = line.find("]", start) + 1
    return _closing(line, brace) + 1 if line[brace : brace + 1] == "{" else brace


def _closing(line: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed; quoted brackets do not count."""
    depth, quoted = 0, False
    for place in range(start, len(line)):
        character = line[place]
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "({[":
            depth += 1
        elif not quoted and character in ")}]":
            depth -= 1
            if depth == 0:
                return place
    return len(line)
