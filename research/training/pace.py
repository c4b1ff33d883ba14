"""How long every process takes for a step, how long it waits for data, and who holds the others up.

In a step all processes wait for each other, so that their step times are alike; what differs is
what a process does before it joins in, above all to wait for its rows of the batch. A device that
is slower than the others does not show here: it makes all steps longer by as much.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from research.parallel import processes

NOTABLE = 0.1
"""Share of a step that the slowest may cost before it is named."""

EVERY_SECONDS = 1.0
"""Time between two exchanges at least: they cost a millisecond."""

MOST = 32
"""Processes whose numbers are all written down; of more only the slowest one's."""


@dataclass(frozen=True)
class Told:
    """Of one process, in the mean of the steps since it last told (seconds a step); evaluations and
    saves are in the time of steps."""

    host: str
    step_seconds: float
    data_wait_seconds: float


class Pace:
    """The pace of this process, and what the others last told of theirs."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._steps = 0
        self._mark = time.perf_counter()
        self._named: int | None = None
        self._before: int | None = None  # who was slowest, and notable, the time before
        self._told: dict[int, Told] = {}

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A context in which a step waits for its batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began
        self._steps += 1

    def measure(self) -> tuple[dict[str, float], str | None]:
        """Metrics of all processes, and a sentence when another one than before is found to hold
        the others up. Every process calls it at the same steps; nobody waits for anybody, so that
        the others' numbers may be those of the time before. Process 0 alone gets them."""
        now, steps = time.perf_counter(), max(self._steps, 1)
        if self._told and processes.count() > 1 and now - self._mark < EVERY_SECONDS:
            return self._metrics(), None
        host = os.environ.get("RESEARCH_HOST") or platform.node()
        own = Told(host, (now - self._mark) / steps, self._waited / steps)
        self._waited, self._steps, self._mark = 0.0, 0, now
        self._told = _exchange(own)
        if not processes.is_first():
            return {}, None
        return self._metrics(), self._complaint(*slowest_of(self._told))

    def _metrics(self) -> dict[str, float]:
        if not processes.is_first():
            return {}
        slowest, _ = slowest_of(self._told)
        metrics: dict[str, float] = {"data_wait_seconds": self._told[slowest].data_wait_seconds}
        if len(self._told) == 1:
            return metrics
        metrics["slowest_process"] = slowest
        for index, its in self._told.items() if len(self._told) <= MOST else []:
            metrics[f"step_seconds_{index}"] = its.step_seconds
            metrics[f"data_wait_seconds_{index}"] = its.data_wait_seconds
        return metrics

    def _complaint(self, slowest: int, cost: float) -> str | None:
        its = self._told[slowest]
        if len(self._told) == 1 or cost <= NOTABLE * its.step_seconds:
            self._named = self._before = None
            return None
        again, self._before = slowest == self._before, slowest
        if not again or slowest == self._named:  # once may be chance
            return None
        self._named = slowest
        return (
            f"process {slowest} on host {its.host} holds each step up by {1000 * cost:.0f} of "
            f"{1000 * its.step_seconds:.0f} ms: it waits {1000 * its.data_wait_seconds:.0f} ms for "
            "data"
        )


def slowest_of(told: dict[int, Told]) -> tuple[int, float]:
    """The process that waits longest for data, and the seconds a step that it costs: what it waits
    beyond the median."""
    waits = {index: its.data_wait_seconds for index, its in told.items()}
    slowest = max(waits, key=lambda index: waits[index])
    others = [wait for index, wait in waits.items() if index != slowest]
    return slowest, waits[slowest] - (median(others) if others else 0.0)


def _exchange(own: Told) -> dict[int, Told]:
    """What every process last told, by its number."""
    joined = processes.rendezvous()
    if joined is None:
        return {0: own}
    numbers = [own.host, own.step_seconds, own.data_wait_seconds]
    folder = "research/pace/"
    joined.client.key_value_set(
        f"{folder}{processes.index()}", json.dumps(numbers), allow_overwrite=True
    )
    if not processes.is_first():
        return {}
    there = joined.client.key_value_dir_get(folder)
    told = {int(key.rpartition("/")[2]): Told(*json.loads(value)) for key, value in there}
    return dict(sorted(told.items()))
