"""What a worker is lent: the steps whose batches it computes, and a number for its push.

A lease is held by one worker, and ends with its push, or when the worker is lost. Then its steps go
back into the deck, and whoever comes next takes them: no batch is left out, and none is used twice.
"""

import heapq
from typing import Any, NamedTuple, Protocol

Steps = tuple[int, ...]
Tree = Any


class Lease(NamedTuple):
    """One turn of one worker."""

    epoch: int  # of the server: how often it was started
    sequence: int  # of the worker's turns, from 1
    steps: Steps  # whose batches it takes, in this order
    version: int  # changes of the server when it fetched
    since: float  # seconds of the server's clock
    parameters: Tree  # what it begins with
    buffers: Tree


class Deck(Protocol):
    """The steps that nobody has."""

    def take(self, worker: int) -> Steps | None:
        """Those of the worker's next turn, if there are any."""
        ...

    def give_back(self, worker: int, steps: Steps) -> None:
        """They were not used."""
        ...

    def to_json(self, lent: list[Steps]) -> dict[str, Any]:
        """What is left, those that are `lent` included."""
        ...


class InTurn:
    """Whoever asks gets the next `period` of `total` steps; what came back goes first."""

    def __init__(
        self, total: int, period: int, first: int = 0, returned: list[Steps] | None = None
    ):
        self.total, self.period, self._next = total, period, first
        self._returned = [tuple(steps) for steps in returned or []]
        heapq.heapify(self._returned)

    def take(self, worker: int) -> Steps | None:
        if self._returned:
            return heapq.heappop(self._returned)
        first, self._next = self._next, min(self._next + self.period, self.total)
        return tuple(range(first, self._next)) or None

    def give_back(self, worker: int, steps: Steps) -> None:
        heapq.heappush(self._returned, steps)

    def to_json(self, lent: list[Steps]) -> dict[str, Any]:
        return {"first": self._next, "returned": sorted([*self._returned, *lent])}
