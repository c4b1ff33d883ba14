"""What a compiled step costs, read from the program: memory, shardings, messages, arithmetic.

Nothing here runs the step, and nothing needs its data or parameters: a program for 256 devices is
compiled, and read, on one machine with none of them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax

from research.models import TransformerConfig
from research.parallel.arithmetic import matrix_flops
from research.parallel.collectives import Collective, collectives
from research.parallel.hlo import parse
from research.parallel.layout import axes_of_spec, names_of
from research.planning.communication import Expected, expected
from research.planning.step import Step, bytes_on_a_device, passes_of

LARGE = 2**20
"""Bytes from which on a parameter that is whole on every device is worth a warning."""
WITHIN = 0.01
"""Of what theory expects, that much more or less is as expected,"""
STATISTICS = 512
"""and so are that many bytes: norms and counts are sums of single numbers, and in no formula."""
SMALL = 4096
"""Bytes of a call up to which a message that no formula has is one of statistics: norms, counts."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    gradients: int  # in float32, like the parameters; among the temporaries
    optimizer: int
    batch: int
    activations: int  # the temporaries without gradients: activations, gathered parameters, buffers
    temporaries: int  # as XLA plans them
    total: int  # arguments, results that take no argument's place, and temporaries


@dataclass(frozen=True)
class Load:
    """What a step goes through."""

    examples: int  # over all devices; of clients in a mean round
    steps: float | None = None  # of a mean client's; None: there are no clients


@dataclass(frozen=True)
class Placed:
    """A parameter on the mesh."""

    name: str
    shape: tuple[int, ...]
    split: tuple[str, ...]  # a dimension's axes, `fsdp` or `data×fsdp`; empty where it is whole
    bytes: int  # on one device
    is_whole: bool  # on every device, though the mesh has axes that split parameters
    is_large: bool


@dataclass(frozen=True)
class Traffic:
    """The messages of one kind along the same axes of the mesh, in a step."""

    kind: str
    axes: tuple[str, ...]
    calls: int
    payload: int  # bytes, of all calls
    wire: float  # bytes that a device sends
    expected: float | None  # the same by theory; None where no formula has such messages
    purposes: tuple[str, ...]  # and the formulas
    largest: str  # where the most of it comes from, in JAX's words
    note: str

    @property
    def ratio(self) -> float | None:
        """Of what is sent to what theory expects."""
        return self.wire / self.expected if self.expected else None


@dataclass(frozen=True)
class Pipeline:
    """The schedule of the stages."""

    schedule: str
    stages: int
    microbatches: int
    rounds: int
    ticks: int  # forward and backward ones, by the table
    compiled_ticks: int  # in which stages send, by the program
    bubble: float
    timeline: str


@dataclass(frozen=True)
class Inspection:
    """All of it."""

    mesh: dict[str, int]
    platform: str
    device: str
    parameters: int
    memory: Memory
    placed: tuple[Placed, ...]
    traffic: tuple[Traffic, ...]
    pipeline: Pipeline | None
    unit: str  # tokens or examples
    flops: float  # a unit, of the program's matrix products on all devices
    model_flops: float | None  # a unit, by the formula 6 N + 12 layers · width · context
    warnings: tuple[str, ...]
    lowering_seconds: float
    compiling_seconds: float

    def to_json(self) -> dict[str, Any]:
        """What the json module can write; with every message's ratio."""
        content = asdict(self)
        for row, each in zip(content["traffic"], self.traffic, strict=True):
            row["ratio"] = each.ratio
        return content


def inspect(
    compiled: jax.stages.Compiled, step: Step, unit: str, load: Load, seconds: tuple[float, float]
) -> Inspection:
    """Of the `compiled` training step; `seconds` are those of lowering and of compiling.

    How many steps a client takes is in its data: FLOPs are of the mean client, and of rounds in
    which all send what is finite.
    """
    learner = step.learner
    program = parse(str(compiled.as_text()))
    found = collectives(program, step.mesh)
    placed = tuple(_placed(step))
    memory = _memory(compiled, step)
    leaves = jax.tree.leaves(learner.abstract_state.parameters)
    units = load.examples * (learner.specification.shape[0] if unit == "tokens" else 1)
    flops = matrix_flops(program)
    if load.steps is not None:
        flops = matrix_flops(program, load.steps, branches=False)
    devices = learner.mesh.devices
    return Inspection(
        mesh=step.mesh,
        platform=step.platform,
        device=devices.flat[0].device_kind,
        parameters=sum(leaf.size for leaf in leaves),
        memory=memory,
        placed=placed,
        traffic=tuple(traffic(found, expected(step))),
        pipeline=_pipeline(found, step),
        unit=unit,
        flops=flops * devices.size / units,
        model_flops=_model_flops(step),
        warnings=tuple(_warnings(step, placed)),
        lowering_seconds=seconds[0],
        compiling_seconds=seconds[1],
    )


# Memory and shardings ---------------------------------------------------------------------------


def _memory(compiled: jax.stages.Compiled, step: Step) -> Memory:
    state = step.state
    parameters, optimizer = bytes_on_a_device(state.parameters), bytes_on_a_device(state.optimizer)
    planned: Any = compiled.memory_analysis()
    arguments, temporaries = planned.argument_size_in_bytes, planned.temp_size_in_bytes
    results = planned.output_size_in_bytes - planned.alias_size_in_bytes
    return Memory(
        parameters=parameters,
        gradients=parameters,
        optimizer=optimizer,
        batch=max(arguments - bytes_on_a_device(state), 0),
        activations=max(temporaries - parameters, 0),
        temporaries=temporaries,
        total=arguments + results + temporaries,
    )


def _placed(step: Step) -> Iterator[Placed]:
    splitting = step.among("stage", "fsdp", "expert", "tensor")
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.state.parameters):
        entries = [*leaf.sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
        yield Placed(
            name="/".join(str(each.key) for each in path),
            shape=leaf.shape,
            split=tuple("×".join(names_of(entry)) for entry in entries),
            bytes=bytes_on_a_device(leaf),
            is_whole=bool(splitting) and not {*axes_of_spec(leaf.sharding.spec)} & {*splitting},
            is_large=bytes_on_a_device(leaf) >= LARGE,
        )


def _warnings(step: Step, placed: tuple[Placed, ...]) -> Iterator[str]:
    for each in placed:
        if each.is_whole and each.is_large:
            yield (
                f"{each.name} {list(each.shape)} is whole on every device "
                f"({each.bytes / 2**20:.1f} MiB): none of "
                f"{', '.join(step.among('stage', 'fsdp', 'expert', 'tensor'))} divides it"
            )


# Messages ----------------------------------------------------------------------------------------


def traffic(found: list[Collective], theory: list[Expected]) -> Iterator[Traffic]:
    """The messages of a program beside those of the theory, by kind and axes, the most first."""
    rows: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for each in found:
        rows.setdefault((each.kind, each.axes), []).append(each)
    purposes: dict[tuple[str, tuple[str, ...]], list[Expected]] = {}
    for row in theory:
        purposes.setdefault((row.kind, row.axes), []).append(row)
        rows.setdefault((row.kind, row.axes), [])

    def most(key: tuple[str, tuple[str, ...]]) -> float:
        return -max(sum(each.total for each in rows[key]), _wire(purposes.get(key, [])))

    for key in sorted(rows, key=most):
        yield _row(*key, rows[key], purposes.get(key, []))


def _wire(theory: list[Expected]) -> float:
    return sum(row.wire for row in theory)


def _row(
    kind: str, axes: tuple[str, ...], found: list[Collective], theory: list[Expected]
) -> Traffic:
    wire, wanted = sum(each.total for each in found), _wire(theory)
    largest = max(found, key=lambda each: each.total, default=None)
    notes = []
    if any(each.printed for each in found):
        notes.append("printed as all-reduce, of which each device keeps its part")
    if not theory:
        is_small = all(each.payload <= SMALL for each in found)
        stray = f"in no formula, the most from {_place(largest)}" if largest else ""
        notes.append("statistics: norms, counts" if is_small else stray)
    elif abs(wire - wanted) > WITHIN * wanted + STATISTICS and found:
        assert largest is not None
        notes.append(f"differs from theory, the most from {_place(largest)}")
    if any(each.branches for each in found):
        notes.append("in a branch that may not run")
    if not all(each.is_certain for each in found):
        notes.append("in a loop of unknown length, counted once")
    return Traffic(
        kind=kind,
        axes=axes,
        calls=sum(each.calls for each in found),
        payload=sum(each.calls * each.payload for each in found),
        wire=wire,
        expected=wanted if theory else None,
        purposes=tuple(dict.fromkeys(f"{row.purpose}: {row.formula}" for row in theory)),
        largest=largest.source if largest else "",
        note="; ".join(notes),
    )


def _place(each: Collective) -> str:
    """The end of its source: `transpose(jvp())/while/body/dot_general`."""
    return "/".join(each.source.split("/")[-4:]) or "nowhere that XLA names"


def _pipeline(found: list[Collective], step: Step) -> Pipeline | None:
    stages, count = step.mesh["stage"], step.microbatches
    if stages == 1:
        return None
    schedule = step.pipeline.build(stages, count)
    passes = passes_of(step)
    return Pipeline(
        schedule=schedule.name,
        stages=stages,
        microbatches=count,
        rounds=schedule.rounds,
        ticks=passes.ticks + passes.ticks_back,
        compiled_ticks=compiled_ticks(found, step),
        bubble=schedule.bubble,
        timeline=schedule.text(),
    )


def compiled_ticks(found: list[Collective], step: Step) -> int:
    """In how many ticks the program sends a microbatch's activations, or their gradients, from each
    stage to the next: all the permutes of that size that a loop holds, or 1f1b's short phases."""
    is_mixed = step.pipeline.build(step.mesh["stage"], step.microbatches).name == "1f1b"
    return sum(
        each.calls
        for each in found
        if each.kind == "collective-permute"
        and each.axes == ("stage",)
        and each.payload == step.activation
        and (each.calls > 1 or is_mixed)
    )


# Arithmetic --------------------------------------------------------------------------------------


def _model_flops(step: Step) -> float | None:
    """FLOPs a token of a transformer, forward and backward, without what is computed again
    (Chowdhery et al. 2022, *PaLM*, arXiv:2204.02311, appendix B); of a mixture the chosen experts.
    """
    model = step.model
    if not isinstance(model, TransformerConfig):
        return None
    used = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.learner.abstract_state.parameters):
        of_experts = model.experts and path[-1].key in ("up", "gate", "down")
        used += leaf.size * (model.experts_per_token / model.experts if of_experts else 1)
    heads = model.heads * model.size_of_head
    return 6 * used + 12 * model.layers * heads * step.learner.specification.shape[0]
