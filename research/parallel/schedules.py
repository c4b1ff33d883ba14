"""Pipeline schedules as data: which microbatch is at which stage at which tick.

A stage of a pipeline holds some layers, and a microbatch visits the stages one after another:
forward through all of them, then backward. A schedule is two tables, `forward` and `backward`
[ticks, stages], of *units*: unit u is one visit of one microbatch to one stage in one round, -1 is
an idle stage. `research.parallel.pipeline` runs what the tables say; the bubble is counted from
them.

gpipe          Huang et al. 2019, *GPipe*, arXiv:1811.06965: all microbatches forward, then all
               backward. Bubble (S - 1) / (M + S - 1) for S stages and M microbatches.
interleaved    Narayanan et al. 2021, *Efficient large-scale language model training on GPU
               clusters*, arXiv:2104.04473: every stage holds R groups of layers and a microbatch
               goes round the stages R times. Bubble (S - 1) / (R·M + S - 1).
1f1b           Narayanan et al. 2019, *PipeDream*, SOSP; with a flush as in arXiv:2006.09503: a
               microbatch goes backward as soon as it is through, so a stage keeps the inputs of at
               most 2·S - 1 microbatches, however many there are. Bubble as gpipe's.

In one tick every stage does at most one unit forward and one backward, then all pass on what they
have. What no stage does in a tick takes no time: 1f1b starts with S - 1 ticks that only go forward,
and ends with S - 1 that only go backward. Zero-bubble schedules (Qi et al. 2023, arXiv:2401.10241)
delay the gradients of the weights into the idle time; here a stage computes its forward pass again
before it goes backward, and would have to do so twice: more than the bubble that it saves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from research.errors import UserError

IDLE = -1
BACKWARD_TIME = 2
"""Time of a backward unit where a forward one takes 1: gradients of inputs and of weights."""


@dataclass(frozen=True)
class Schedule:
    """Who does what when: the tables of a pipeline."""

    name: str
    stages: int
    microbatches: int
    rounds: int
    """Times that a microbatch goes round the stages."""
    forward: np.ndarray
    """[ticks, stages] unit that a stage runs forward, or IDLE."""
    backward: np.ndarray
    """[ticks, stages] unit that it runs backward in the same tick, or IDLE."""

    @property
    def units(self) -> int:
        """Visits to one stage, forward."""
        return self.rounds * self.microbatches

    def microbatch(self, unit: Any) -> Any:
        """The microbatch of `unit` (NumPy and JAX arrays as well). Groups of as many microbatches
        as there are stages go through all their rounds before the next group."""
        group = unit // (self.rounds * self.stages)
        return group * self.stages + unit % self.stages

    def round(self, unit: Any) -> Any:
        """The round of `unit`."""
        return unit // self.stages % self.rounds

    @property
    def entries(self) -> np.ndarray:
        """[microbatches] the tick in which the first stage takes in each microbatch."""
        return self._ticks(stage=0, of_round=0)

    @property
    def exits(self) -> np.ndarray:
        """[microbatches] the tick in which the last stage is through with each microbatch."""
        return self._ticks(stage=self.stages - 1, of_round=self.rounds - 1)

    def _ticks(self, stage: int, of_round: int) -> np.ndarray:
        ticks = np.zeros(self.microbatches, np.int32)
        for tick, unit in enumerate(self.forward[:, stage]):
            if unit != IDLE and self.round(unit) == of_round:
                ticks[self.microbatch(unit)] = tick
        return ticks

    @property
    def kept(self) -> int:
        """Most microbatches whose input a stage keeps at once for the way back."""
        began = np.cumsum(self.forward != IDLE, axis=0)
        ended = np.cumsum(self.backward != IDLE, axis=0)
        before = np.vstack([np.zeros((1, self.stages), int), ended[:-1]])
        return int((began - before).max())

    @property
    def phases(self) -> list["Phase"]:
        """The ticks, cut where the kinds of work that a tick has change."""
        kinds = np.stack([(t != IDLE).any(axis=1) for t in (self.forward, self.backward)], axis=1)
        cuts = [0, *(np.flatnonzero((kinds[1:] != kinds[:-1]).any(axis=1)) + 1), len(kinds)]
        return [
            Phase(int(first), int(last), bool(kinds[first, 0]), bool(kinds[first, 1]))
            for first, last in pairwise(cuts)
        ]

    @property
    def slots(self) -> Iterator["Slot"]:
        """What happens one after another: the forward part of a tick, if any stage has one, then
        its backward part."""
        for rows in zip(self.forward, self.backward, strict=True):
            for kind, units in zip(("forward", "backward"), rows, strict=True):
                if (units != IDLE).any():
                    yield Slot(kind, units)  # type: ignore[arg-type]

    @property
    def bubble(self) -> float:
        """Share of the stages' time in which they are idle, in [0, 1)."""
        busy = total = 0
        for slot in self.slots:
            busy += slot.time * int((slot.units != IDLE).sum())
            total += slot.time * self.stages
        return 1 - busy / total

    def text(self) -> str:
        """The timeline as text: a line a stage, a column a slot, `F3` and `B3` for microbatch 3,
        with a letter for the round where there are several."""
        lines = []
        slots = list(self.slots)
        width = 2 + len(str(self.microbatches - 1)) + (self.rounds > 1)
        for stage in range(self.stages):
            cells = [self.label(slot, stage).rjust(width) for slot in slots]
            lines.append(f"stage {stage} |" + "".join(cells))
        return "\n".join(lines)

    def label(self, slot: "Slot", stage: int) -> str:
        """What `stage` does in `slot`: `F3`, `B3b` (round 1), or `·`."""
        unit = int(slot.units[stage])
        if unit == IDLE:
            return "·"
        letter = chr(ord("a") + self.round(unit)) if self.rounds > 1 else ""
        return f"{slot.kind[0].upper()}{self.microbatch(unit)}{letter}"


class Phase(NamedTuple):
    """Ticks `first` to `last` (not included) that all have the same kinds of work."""

    first: int
    last: int
    forward: bool
    backward: bool


class Slot(NamedTuple):
    """One part of a tick, in which stages do work of one kind or nothing."""

    kind: Literal["forward", "backward"]
    units: np.ndarray  # [stages] unit or IDLE

    @property
    def time(self) -> int:
        """In times of a forward unit."""
        return 1 if self.kind == "forward" else BACKWARD_TIME


@dataclass(frozen=True)
class PipelineConfig:
    """How microbatches go through the stages; used where --mesh.stage is more than 1."""

    schedule: Literal["gpipe", "interleaved", "1f1b"] = "1f1b"
    """Order of the passes. gpipe: all forward, then all backward; interleaved: the same in several
    rounds, for a smaller bubble; 1f1b: memory that does not grow with the microbatches' number."""

    rounds: int = 2
    """Times that a microbatch goes round the stages, for interleaved only."""

    def rounds_of(self, stages: int) -> int:
        """Rounds over `stages` stages: 1 unless interleaved. Raises UserError for less than 1."""
        if self.rounds < 1:
            raise UserError(f"--pipeline.rounds {self.rounds} must be 1 or more")
        return self.rounds if self.schedule == "interleaved" and stages > 1 else 1

    def build(self, stages: int, microbatches: int) -> Schedule:
        """The tables for `stages` and `microbatches`.

        Raises UserError for too few microbatches, or (interleaved) no multiple of the stages.
        """
        if microbatches < stages:
            are = "microbatches are" if microbatches > 1 else "microbatch is"
            raise UserError(
                f"{microbatches} {are} fewer than the {stages} stages: use "
                f"--optimizer.microbatches {stages} or more, or --mesh.stage {max(microbatches, 1)}"
            )
        if self.schedule == "1f1b":
            return one_forward_one_backward(stages, microbatches)
        if self.schedule == "gpipe":
            return gpipe(stages, microbatches)
        rounds = self.rounds_of(stages)
        if microbatches % stages:
            below = microbatches - microbatches % stages
            raise UserError(
                f"interleaved microbatches go in groups of as many as there are stages, and "
                f"{microbatches} do not divide over stage = {stages}: use --optimizer.microbatches "
                f"{below} or {below + stages}, or --pipeline.schedule gpipe"
            )
        return interleaved(stages, microbatches, rounds)

    def forward(self, stages: int, microbatches: int) -> Schedule:
        """The tables of a pass that only goes forward, with layers where `build` has them."""
        config = self if self.schedule == "interleaved" else PipelineConfig("gpipe")
        made = config.build(stages, microbatches)
        ticks = microbatches * made.rounds + stages - 1
        return Schedule(
            made.name,
            stages,
            microbatches,
            made.rounds,
            made.forward[:ticks],
            made.backward[:ticks],
        )


def gpipe(stages: int, microbatches: int) -> Schedule:
    """All microbatches forward, then all backward in the opposite order."""
    return _there_and_back("gpipe", stages, microbatches, 1)


def interleaved(stages: int, microbatches: int, rounds: int) -> Schedule:
    """As gpipe, in `rounds` rounds over groups of layers that are as many times smaller."""
    return _there_and_back("interleaved", stages, microbatches, rounds)


def one_forward_one_backward(stages: int, microbatches: int) -> Schedule:
    """Microbatch m is at stage s forward in tick m + s, and backward in m + 2·(S - 1) - s."""
    ticks = np.arange(microbatches + 2 * (stages - 1))[:, None]
    stage = np.arange(stages)
    return Schedule(
        "1f1b",
        stages,
        microbatches,
        1,
        _valid(ticks - stage, microbatches),
        _valid(ticks - 2 * (stages - 1) + stage, microbatches),
    )


def _there_and_back(name: str, stages: int, microbatches: int, rounds: int) -> Schedule:
    units = rounds * microbatches
    ticks = np.arange(units + stages - 1)[:, None]
    there = _valid(ticks - np.arange(stages), units)
    idle = np.full_like(there, IDLE)
    return Schedule(
        name,
        stages,
        microbatches,
        rounds,
        np.concatenate([there, idle]),
        np.concatenate([idle, there[::-1]]),
    )


def _valid(units: np.ndarray, count: int) -> np.ndarray:
    return np.where((units >= 0) & (units < count), units, IDLE).astype(np.int32)
