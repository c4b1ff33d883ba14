"""What became of a run's generations: `generations.jsonl` in its folder, and a line at its end."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from research.training.folder import write_whole


@dataclass
class Generation:
    """Processes that trained together, from one change of members to the next."""

    number: int
    processes: int
    mesh: str
    hosts: list[str]
    started: float
    """Seconds since the launch began."""
    restored: int | None = None
    """Step that it went on from (None: not known yet)."""
    source: str = "the start"
    """Where that came from: snapshot, checkpoint or the start."""
    first_step: float | None = None
    """When its first step was done (seconds since the launch began)."""
    step: int = 0
    """The last step that was done."""
    ended: float | None = None
    cause: str = ""
    """Why it ended."""
    lost: int = 0
    """Steps before it that it did again."""
    recovery: float | None = None
    """Seconds from the failure before it to its first step."""
    pids: dict[str, int] = field(default_factory=dict)
    """Of the workers, by rank."""


class History:
    """Of one launch."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.generations: list[Generation] = []

    def clock(self) -> float:
        """Seconds since the launch began."""
        return round(time.monotonic() - self._began, 3)

    def start(self, number: int, processes: int, mesh: str, hosts: list[str]) -> Generation:
        """A generation that starts now."""
        made = Generation(number, processes, mesh, hosts, self.clock())
        self.generations.append(made)
        return made

    def restored(self, step: int, source: str) -> None:
        """The newest generation goes on from `step`: what was done beyond is done again."""
        last = self.generations[-1]
        last.restored, last.source = step, source
        furthest = max((g.step for g in self.generations[:-1]), default=0)
        last.lost = max(furthest - step, 0) if len(self.generations) > 1 else 0

    def stepped(self, step: int) -> bool:
        """`step` is done; returns whether it is so for the first time."""
        furthest = max(g.step for g in self.generations)
        last = self.generations[-1]
        if last.first_step is None:
            last.first_step = self.clock()
            before = [g for g in self.generations[:-1] if g.ended is not None]
            if before:
                last.recovery = round(last.first_step - (before[-1].ended or 0), 3)
        last.step = max(last.step, step)
        return step > furthest

    def end(self, cause: str) -> None:
        """The newest generation, if there was one, is over."""
        if not self.generations:
            return
        last = self.generations[-1]
        if last.ended is None:
            last.ended, last.cause = self.clock(), cause

    def write(self, folder: str | None) -> None:
        """Writes all to the run folder, if it is known and can be written to."""
        if folder is None:
            return
        path = Path(folder) / "generations.jsonl"
        lines = "".join(json.dumps(asdict(g)) + "\n" for g in self.generations)
        with contextlib.suppress(OSError):
            write_whole(path, lines)

    def summary(self, snapshot_every: int) -> str:
        """One line: generations, what they lost, and how long it took to go on."""
        count = len(self.generations)
        if count <= 1:
            return (
                f"1 generation, no step was lost; a failure would cost {_at_most(snapshot_every)}"
            )
        lost = sum(g.lost for g in self.generations)
        times = [g.recovery for g in self.generations if g.recovery is not None]
        again = f", {max(times):.1f} s to the next step at worst" if times else ""
        return (
            f"{count} generations, {lost} step{'s' if lost != 1 else ''} lost and done again "
            f"(a failure costs {_at_most(snapshot_every)}){again}"
        )


def _at_most(snapshot_every: int) -> str:
    if snapshot_every < 1:
        return "the steps since the last checkpoint"
    return f"at most {snapshot_every} step{'s' if snapshot_every > 1 else ''}"
