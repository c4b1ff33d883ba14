"""Virtual time: who is done when, if workers of given speeds share one server.

Nothing here waits, and nothing depends on a machine: how long the k-th gradient of worker w takes
is drawn from (seed, w, k), and all else follows from it. So the events of any step are a pure
function of (seed, step), and a resumed run finds them again without a state.

    a_w,k = a_w,k-1 + d_w,k + c        when the k-th gradient of worker w arrives (`Arrivals`)
    τ_t   = t - 1 - t'                 updates since that worker fetched, after its update t'

d is a duration, c what the way to the server and back takes. The server's updates t = 0, 1, ... are
the arrivals in their order; of two at the same moment the worker of the smaller number is first. A
worker fetches as soon as its gradient has arrived (at the start all have fetched: t' = -1).

With backup workers all begin together, and a step ends with the n-th gradient (`Rounds`):

    e_t = e_t-1 + (the n-th smallest of d_1,t ... d_n+b,t) + c
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

BLOCK = 256
"""Durations that are drawn at once."""

SHORTEST = 1e-6
"""No gradient takes less than this share of the mean: a worker has one turn at a time."""

Distribution = Literal["constant", "uniform", "exponential", "log_normal"]


@dataclass(frozen=True)
class Durations:
    """How long gradients take."""

    distribution: Distribution = "constant"
    seconds: float = 1.0
    """Mean (virtual seconds)."""
    spread: float = 0.5
    """uniform: from (1 - spread) to (1 + spread) times the mean; log_normal: standard deviation of
    the logarithm."""
    slow_factor: float = 1.0
    """The last worker takes so many times as long."""

    def draw(self, seed: int, workers: int, worker: int, block: int) -> np.ndarray:
        """float64 [BLOCK]: those of the gradients from `block` · BLOCK on (virtual seconds)."""
        entropy = (seed % 2**64, worker, block)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        if self.distribution == "uniform":
            factors = 1 + self.spread * generator.uniform(-1, 1, BLOCK)
        elif self.distribution == "exponential":
            factors = generator.exponential(1, BLOCK)
        elif self.distribution == "log_normal":  # with mean 1
            factors = np.exp(self.spread * generator.normal(size=BLOCK) - self.spread**2 / 2)
        else:
            factors = np.ones(BLOCK)
        slow = self.slow_factor if worker == workers - 1 else 1.0
        return self.seconds * slow * np.maximum(factors, SHORTEST)


class Events(NamedTuple):
    """The server's updates in their order, [updates] each."""

    worker: np.ndarray  # int32: whose gradient it is
    staleness: np.ndarray  # int32: updates since that worker fetched
    seconds: np.ndarray  # float64: when it arrives
    refused: np.ndarray  # int32: gradients before it that were too stale to be used


class Arrivals:
    """The event queue of an asynchronous server."""

    def __init__(
        self,
        durations: Durations,
        workers: int,
        seed: int,
        way: float = 0.0,
        bound: int | None = None,
    ):
        """`way`: seconds from worker to server and back, for a gradient and the parameters;
        `bound`: the largest staleness of a gradient that is used."""
        self._durations, self.workers, self._seed, self._way = durations, workers, seed, way
        self._bound = bound
        self._times = [np.zeros(0) for _ in range(workers)]  # of every worker's arrivals
        self._events = _in_order([np.zeros(0) for _ in range(workers)])

    def before(self, step: int) -> Events:
        """The first `step` updates."""
        if len(self._events.worker) < step:
            self._events = self._merged(max(step, 2 * len(self._events.worker)))
        return Events(*(array[:step] for array in self._events))

    def _merged(self, updates: int) -> Events:
        """As many updates as are known for certain, and at least so many."""
        for worker in range(self.workers):
            if not len(self._times[worker]):
                self._lengthen(worker)
        while True:
            ends = [times[-1] for times in self._times]
            until = min(ends)  # later, a gradient that is not drawn yet may come between
            known = [times[: np.searchsorted(times, until, "right")] for times in self._times]
            if sum(map(len, known)) >= updates:
                events = _in_order(known)
                if self._bound is not None:
                    events = _within(self._bound, events, self.workers)
                if len(events.worker) >= updates:
                    return events
            self._lengthen(int(np.argmin(ends)))

    def _lengthen(self, worker: int) -> None:
        """Doubles what is known of a worker. Sums are taken block by block, so that none depends on
        how much was asked for when."""
        times = self._times[worker]
        blocks = len(times) // BLOCK
        parts, last = [times], times[-1] if blocks else 0.0
        for block in range(blocks, 2 * blocks or 1):
            drawn = self._durations.draw(self._seed, self.workers, worker, block) + self._way
            parts.append(last + np.cumsum(drawn))
            last = parts[-1][-1]
        self._times[worker] = np.concatenate(parts)


def _in_order(times: list[np.ndarray]) -> Events:
    seconds = np.concatenate(times)
    worker = np.repeat(np.arange(len(times), dtype=np.int32), [len(each) for each in times])
    order = np.lexsort((worker, seconds))
    worker, seconds = worker[order], seconds[order]
    updates = np.arange(len(worker), dtype=np.int32)
    last = np.full(len(worker), -1, np.int32)  # the same worker's update before
    turns = np.argsort(worker, kind="stable")  # all of one worker, then all of the next
    same = worker[turns[1:]] == worker[turns[:-1]]
    last[turns[1:][same]] = turns[:-1][same]
    return Events(worker, updates - last - 1, seconds, np.zeros(len(worker), np.int32))


def _within(bound: int, arrivals: Events, workers: int) -> Events:
    """The updates of those `arrivals` that are not too stale, as there are fewer of them; whoever
    is refused fetches anew."""
    fetched = [0] * workers
    kept: list[int] = []
    staleness: list[int] = []
    for arrival, worker in enumerate(arrivals.worker):
        late = len(kept) - fetched[worker]
        if late <= bound:
            kept.append(arrival)
            staleness.append(late)
        fetched[worker] = len(kept)
    at = np.array(kept, np.int32)
    refused = at - np.arange(len(at), dtype=np.int32)
    return Events(arrivals.worker[at], np.array(staleness, np.int32), arrivals.seconds[at], refused)


class Rounds:
    """Steps that end with the gradients of all workers but the slowest few, who then give up and
    begin anew with the others."""

    def __init__(
        self, durations: Durations, workers: int, backup: int, seed: int, way: float = 0.0
    ):
        """`backup` of the `workers` are not waited for; `way` as of `Arrivals`."""
        self._durations, self.workers, self._seed, self._way = durations, workers, seed, way
        self.needed = workers - backup
        self._arrived = np.zeros((0, workers), bool)
        self._ends = np.zeros(0)

    def arrived(self, step: int) -> np.ndarray:
        """bool [workers]: whose gradients are in time in `step` (from 0)."""
        self._lengthen(step + 1)
        return self._arrived[step]

    def seconds(self, steps: int) -> float:
        """When so many steps are done (virtual seconds)."""
        self._lengthen(steps)
        return float(self._ends[steps - 1]) if steps else 0.0

    def _lengthen(self, steps: int) -> None:
        blocks = len(self._ends) // BLOCK
        if steps <= blocks * BLOCK:
            return
        arrived, ends = [self._arrived], [self._ends]
        last = self._ends[-1] if blocks else 0.0
        for block in range(blocks, max(-(-steps // BLOCK), 2 * blocks)):
            drawn = np.stack(  # [workers, BLOCK]
                [
                    self._durations.draw(self._seed, self.workers, worker, block)
                    for worker in range(self.workers)
                ]
            )
            rank = np.argsort(np.argsort(drawn, axis=0, kind="stable"), axis=0)
            arrived.append((rank < self.needed).T)
            slowest = np.sort(drawn, axis=0)[self.needed - 1]
            ends.append(last + np.cumsum(slowest + self._way))
            last = ends[-1][-1]
        self._arrived, self._ends = np.concatenate(arrived), np.concatenate(ends)


def histogram(staleness: np.ndarray, workers: int, buckets: int = 16) -> dict[int, int]:
    """How many updates have which staleness: of equally wide buckets, the first staleness of each
    and its count. All from 2 · `workers` on are in the last; there are at most `buckets`."""
    width = -(-2 * workers // buckets)
    count = -(-2 * workers // width)
    counted = np.bincount(np.minimum(staleness // width, count - 1), minlength=count)
    return {bucket * width: int(many) for bucket, many in enumerate(counted)}
