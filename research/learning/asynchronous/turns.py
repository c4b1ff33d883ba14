"""Virtual time of workers that take steps of their own: who moves when, and who waits.

A turn of a worker is H gradients of its own, after which it sends its move. Then,

    each      the server takes the move in, and the worker goes on           (EASGD)
    buffer    it fetches and goes on; with every K-th move the server merges  (FedBuff)
    quorum    it waits. G after the Q-th move, or when all are there, the server merges the M ≥ Q
              moves it has, and those M begin again; a move that is late is in the next merge
              (Decoupled DiLoCo, with a constant grace window G)

How long a gradient takes is drawn as in `virtual_time`, and what the way to the server and back
takes comes on top once a turn. Of two events at the same moment the worker of the smaller number is
first; a merge is after all moves of its moment.
"""

import heapq
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from research.learning.asynchronous.virtual_time import BLOCK, Durations


@dataclass(frozen=True)
class Meeting:
    """When moves become a change of the server."""

    kind: Literal["each", "buffer", "quorum"]
    count: int = 1
    """K or Q."""
    grace: float = 0.0
    """G (seconds)."""


class Event(NamedTuple):
    """A gradient, and what follows from it."""

    worker: int
    seconds: float
    moves: bool  # whether it ends a turn whose move is taken in
    refused: bool  # whether it ends one that is too stale
    staleness: int  # τ of that move: changes of the server since the worker fetched
    merges: int  # how many moves are merged before the next event; 0: none are
    begins: tuple[int, ...]  # who then has the server's parameters


class Turns:
    """The event queue of a server of moves."""

    def __init__(
        self,
        durations: Durations,
        workers: int,
        seed: int,
        period: int,
        meeting: Meeting,
        way: float = 0.0,
        bound: int | None = None,
    ):
        """`period` gradients a turn, `way` seconds to the server and back, and the `bound` of a
        staleness that is still taken in."""
        self.workers, self.period, self.meeting = workers, period, meeting
        self._durations, self._seed, self._way, self._bound = durations, seed, way, bound
        self._drawn: list[np.ndarray] = [np.zeros(0) for _ in range(workers)]
        self._done = [0] * workers
        self._fetched = [0] * workers
        self._version = self._pending = 0
        self._waiting: list[int] = []
        self._deadline: float | None = None
        self._events: list[Event] = []
        self._queue: list[tuple[float, int]] = []
        for worker in range(workers):
            self._go_on(worker, 0.0)

    def before(self, step: int) -> list[Event]:
        """The first `step` gradients."""
        while len(self._events) <= step:  # one more, for a merge may come after the last
            self._advance()
        return self._events[:step]

    def _advance(self) -> None:
        if self._deadline is not None and (not self._queue or self._deadline < self._queue[0][0]):
            self._meet(self._deadline)
        now, worker = heapq.heappop(self._queue)
        self._done[worker] += 1
        if self._done[worker] % self.period:
            self._events.append(Event(worker, now, False, False, 0, 0, ()))
            self._go_on(worker, now)
            return
        staleness = self._version - self._fetched[worker]
        refused = self._bound is not None and staleness > self._bound
        event = Event(worker, now, not refused, refused, staleness, 0, ())
        kind, count = self.meeting.kind, self.meeting.count
        if refused:
            event = event._replace(begins=(worker,))
        elif kind == "each":
            self._version += 1
        else:
            self._pending += 1
        if kind == "buffer" and not refused:
            if self._pending == count:
                event = event._replace(merges=count)
                self._version, self._pending = self._version + 1, 0
            event = event._replace(begins=(worker,))
        self._events.append(event)
        if kind == "quorum" and not refused:
            self._waiting.append(worker)
            if self._pending == count:
                self._deadline = now + self.meeting.grace
            if len(self._waiting) == self.workers:
                self._deadline = now
            return
        self._fetched[worker] = self._version
        self._go_on(worker, now)

    def _meet(self, now: float) -> None:
        self._version += 1
        self._events[-1] = self._events[-1]._replace(
            merges=self._pending, begins=self._events[-1].begins + tuple(self._waiting)
        )
        for worker in self._waiting:
            self._fetched[worker] = self._version
            self._go_on(worker, now)
        self._pending, self._deadline, self._waiting = 0, None, []

    def _go_on(self, worker: int, now: float) -> None:
        done = self._done[worker]
        if done == len(self._drawn[worker]):
            block = self._durations.draw(self._seed, self.workers, worker, done // BLOCK)
            self._drawn[worker] = np.concatenate([self._drawn[worker], block])
        way = 0.0 if done % self.period else self._way
        heapq.heappush(self._queue, (now + float(self._drawn[worker][done]) + way, worker))
