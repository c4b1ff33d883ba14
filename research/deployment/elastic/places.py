"""The places of a host: in each a worker that takes part, and one that stands by for the next."""

import contextlib
import signal
import time
from dataclasses import dataclass
from typing import Any

from research.deployment.elastic.options import Options
from research.deployment.elastic.worker import Put, Worker
from research.parallel.supervision import EXPLAIN

MOST_FAILURES = 5
"""Workers of one place that may end one after the other before they have stood by."""


@dataclass
class Place:
    """Room for one worker."""

    number: int
    active: Worker | None = None
    standby: Worker | None = None
    rank: int | None = None
    """In the present generation, or the last."""
    rests_until: float = 0.0
    rests: int = 0
    """How often it has had to rest since a worker last ended well."""
    failures: int = 0
    """Of workers that stood by, one after the other."""


class Places:
    """All of a host."""

    def __init__(self, options: Options, program: list[str], lifeline: int, put: Put):
        self._options = options
        self._command = [*program, "stand-by", *options.command]
        self._lifeline, self._put = lifeline, put
        self._places = [Place(number) for number in range(options.processes)]
        self._closed = False

    def fill(self, while_training: bool) -> None:
        """Lets a worker stand by wherever one may."""
        now = time.monotonic()
        for place in self._places:
            if self._closed or place.standby is not None or now < place.rests_until:
                continue
            if place.active is not None and not (self._options.standby and while_training):
                continue
            place.standby = Worker(self._command, place.number, self._lifeline, self._put)
            if place.active is not None:
                return  # one after the other: those that train need the processors

    def close(self) -> None:
        """Nobody stands by any more: the host leaves."""
        self._closed = True
        for place in self._places:
            if place.standby is not None:
                place.standby.kill()

    def replace_stopped(self) -> None:
        """Ends those that stand by and are held still by a signal: others will."""
        for place in self._places:
            if place.standby is not None and place.standby.is_stopped():
                place.standby.kill()

    def free(self) -> list[Worker]:
        """Those that stand by, or will as soon as they have started."""
        now = time.monotonic()
        return [
            place.standby
            for place in self._places
            if place.standby is not None and now >= place.rests_until and not self._closed
        ]

    def active(self) -> list[Worker]:
        """Those of the present generation."""
        return [place.active for place in self._places if place.active is not None]

    def start(
        self, generation: int, ranks: list[int], words: list[str], environment: dict[str, str]
    ) -> list[int]:
        """Sends a worker into each of the ranks; returns the ranks that there is none for."""
        free = self.free()
        for place in self._places:
            place.rank = None
        for worker, rank in zip(free, ranks, strict=False):
            place = self._places[worker.place]
            place.active, place.standby, place.rank = worker, None, rank
            own = environment | {"RESEARCH_PROCESS": str(rank)}
            worker.take_part(generation, rank, {"environment": own, "words": words})
        return ranks[len(free) :]

    def leave(self, reason: str) -> None:
        """Asks the generation to stop at a step that all agree on."""
        for worker in self.active():
            worker.order({"do": "leave", "reason": reason})

    def kill(self) -> None:
        """Ends what is left of the generation."""
        for worker in self.active():
            worker.kill()

    def rest(self, rank: int) -> None:
        """The place of that rank stays out for a while, longer each time."""
        for place in self._places:
            if place.rank == rank:
                place.rests_until = time.monotonic() + (
                    self._options.return_seconds * 2 ** min(place.rests, 5)
                )
                place.rests += 1

    def stopped(self) -> list[int]:
        """Ranks that a signal holds still."""
        return [w.rank for w in self.active() if w.is_stopped() and w.rank is not None]

    def write_stacks(self) -> list[int]:
        """Lets the workers write where they are, and tell in what they may wait; returns the ranks
        that a signal holds still."""
        stopped = self.stopped()
        for worker in self.active():
            if worker.rank not in stopped:
                worker.signal(signal.SIGUSR1)
                worker.order({"do": EXPLAIN})
        return stopped

    def declared(self, worker: Worker, what: dict[str, Any]) -> None:
        """It has imported all, and told what its config asks for."""
        worker.declared = what
        self._places[worker.place].failures = 0

    def ended(self, worker: Worker) -> str | None:
        """Takes note that it is gone; returns a sentence if workers of its place cannot start."""
        place = self._places[worker.place]
        if worker is place.active:
            place.active = None
            if worker.status == 0:
                place.rests = place.failures = 0
            return None
        place.standby = None
        if "failed" in worker.facts or self._closed:
            return None
        # By an error of its own: one that is killed from outside may well come so far next time.
        place.failures += (worker.status or 0) > 0 and worker.declared is None
        if place.failures <= MOST_FAILURES:
            return None
        return "workers end before they can take part:\n" + "\n".join(worker.last_lines())

    def end(self) -> None:
        """Kills everything, and returns when it is gone."""
        self._closed = True
        standing_by = [place.standby for place in self._places if place.standby is not None]
        for worker in self.active() + standing_by:
            worker.kill()
        for worker in self.active() + standing_by:
            with contextlib.suppress(Exception):
                worker.process.wait(10)


def facts_of(worker: Worker) -> dict[str, Any]:
    """What the controller is told of a worker that ended."""
    failed = worker.status != 0 and not worker.ended_by_us
    return {
        "rank": worker.rank,
        "generation": worker.generation,
        "status": worker.status,
        "by_us": worker.ended_by_us,
        "pid": worker.pid,
        "facts": worker.facts,
        "tail": worker.last_lines() if failed else [],
    }
