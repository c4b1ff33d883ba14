"""Whether a generation still makes progress, by the steps that its workers tell.

A step that takes longer than max(`floor`, 20 × the median) has hung. The median is over the time
between the steps of the first worker that tells them, so it needs no clock in common. Between
phases in which no step ends (a start, a compilation, a save, an evaluation) the limit is a longer
one.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

TIMES_MEDIAN = 20
SLOW_PHASE_SECONDS = 1800.0
"""For a compilation, an evaluation or a save."""

START_SECONDS = 240.0
"""For what comes before: to import, to meet, to lay out data."""

QUICK = "training"


@dataclass
class Progress:
    """Of one worker."""

    step: int = -1
    phase: str = "starting"
    since: float = 0.0
    """When the last step or phase was told (monotonic seconds)."""


@dataclass
class Watch:
    """Of one generation."""

    floor: float
    began: float
    workers: dict[int, Progress] = field(default_factory=dict)  # by rank
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    """Seconds a step, of late."""

    def tell(
        self, rank: int, now: float, step: int | None = None, phase: str | None = None
    ) -> None:
        """Takes what a worker told at `now`."""
        worker = self.workers.setdefault(rank, Progress(since=self.began))
        if phase is not None:
            worker.phase = phase
        if step is not None:
            if worker.step >= 0 and step > worker.step and worker.phase == QUICK:
                self.durations.append((now - worker.since) / (step - worker.step))
            worker.step = step
        worker.since = now

    def limit(self, phase: str) -> float:
        """Seconds that a step may take, or a phase without steps."""
        if phase == QUICK:
            return max(self.floor, TIMES_MEDIAN * self.median)
        return SLOW_PHASE_SECONDS if phase in SLOW else START_SECONDS

    @property
    def median(self) -> float:
        """Of the seconds a step; 0 before the second."""
        return median(self.durations) if self.durations else 0.0

    def hung(self, now: float) -> tuple[int, float] | None:
        """The rank that is furthest behind and its silence in seconds, if one waits too long."""
        late = [
            rank
            for rank, worker in self.workers.items()
            if now - worker.since > self.limit(worker.phase)
        ]
        if not late:
            return None
        rank = min(late, key=lambda rank: (self.workers[rank].step, self.workers[rank].since))
        return rank, now - self.workers[rank].since

    def step(self) -> int:
        """The last step that is done at every worker; -1 before the first."""
        return min((worker.step for worker in self.workers.values()), default=-1)

    def furthest(self) -> int:
        """The last step that some worker has done; -1 before the first."""
        return max((worker.step for worker in self.workers.values()), default=-1)


SLOW = ("compiling", "evaluating", "saving", "ending", "restoring")
