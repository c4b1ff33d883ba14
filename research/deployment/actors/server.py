"""A server and its workers as a state machine: messages in, answers out, no I/O and no clock.

    pull(worker)                            its lease, or word to wait, or that all is done
    push(worker, epoch, sequence, pushed)   what became of it, and the next lease
    tick()                                  who is overdue
    lost(worker), absent(worker)            it died; or did before this server was started

Every message carries the time. Whoever delivers them may do so twice, late or never:

- A push is taken in once at most: while its worker holds the lease of that number. A second one of
  the same number is a duplicate; one of a lease that was taken back, or of a server before a
  restart (another epoch), is told so, and the worker pulls anew.
- A pull gives the lease that the worker has, if it has one.
- Nobody waits for a worker that is lost. Its steps go back into the deck.

When moves become a change of the server is `Meeting`'s: of a quorum, a lost worker is not expected.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from research.deployment.actors.leases import Deck, Lease
from research.deployment.actors.methods import Method, Pushed
from research.learning.asynchronous.turns import Meeting
from research.learning.asynchronous.virtual_time import histogram

Outcome = Literal["none", "taken", "duplicate", "stale", "revoked"]


class Answer(NamedTuple):
    """To a worker: what became of its push, and what it is to do."""

    outcome: Outcome
    lease: Lease | None  # None: ask again a little later
    finished: bool  # there is nothing more to do


class Taken(NamedTuple):
    """A push that was taken in."""

    worker: int
    epoch: int
    sequence: int
    steps: tuple[int, ...]
    staleness: int
    metrics: dict[str, Any]


class Server:
    """See the file's head; `total` steps are to be made by `workers`."""

    def __init__(
        self,
        method: Method,
        deck: Deck,
        total: int,
        workers: int,
        meeting: Meeting,
        epoch: int = 1,
        bound: int | None = None,
        size: int = 0,
        on_taken: Callable[[Taken], None] = lambda taken: None,
    ):
        """`bound` is the largest staleness that is taken in; a push and what is fetched have `size`
        bytes; `on_taken` is called after every push that counts."""
        self.method, self.deck, self.total, self.epoch = method, deck, total, epoch
        self.workers, self.meeting = workers, meeting
        self._bound, self._size, self._on_taken = bound, size, on_taken
        self.step = self.version = 0
        self._leases: dict[int, Lease] = {}
        self._sequences = [0] * workers  # the last that were given
        self._settled = [0] * workers  # the last that were taken in, or refused as stale
        self._away: set[int] = set()
        self.heard: set[int] = set()
        """Who has pulled, and was not lost since."""
        self._pending = 0  # moves since the last merge
        self._waiting: set[int] = set()
        self._deadline: float | None = None
        self._staleness: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self._turns: list[float] = []  # seconds of the last turns

    # Messages -----------------------------------------------------------------------------------

    def pull(self, worker: int, now: float) -> Answer:
        """What `worker` is to do."""
        self._away.discard(worker)
        self.heard.add(worker)
        self._meet(now)
        return self._answer(worker, now, "none")

    def push(self, worker: int, epoch: int, sequence: int, pushed: Pushed, now: float) -> Answer:
        """Takes in what `worker` made of the lease of this number, if it still holds it."""
        self._meet(now)
        lease = self._leases.get(worker)
        if lease is None or (epoch, sequence) != (lease.epoch, lease.sequence):
            again = epoch == self.epoch and sequence <= self._settled[worker]
            outcome: Outcome = "duplicate" if again else "revoked"
            self.counts[outcome] += 1
            return self._answer(worker, now, outcome)
        del self._leases[worker]
        self._settled[worker] = sequence
        self._turns = [*self._turns[-99:], now - lease.since]
        staleness = self.version - lease.version
        if self._bound is not None and staleness > self._bound:
            self.counts["stale"] += 1
            self.deck.give_back(worker, lease.steps)
            self.method.fetch(worker)
            return self._answer(worker, now, "stale")
        self._take(worker, lease, pushed, staleness, now)
        return self._answer(worker, now, "taken")

    def tick(self, now: float, least: float = float("inf")) -> list[int]:
        """Who has a lease for longer than `least` seconds, and 20 times the median turn."""
        self._meet(now)
        median = float(np.median(self._turns)) if self._turns else 0.0
        limit = max(least, 20 * median)
        return [worker for worker, lease in self._leases.items() if now - lease.since > limit]

    def lost(self, worker: int, now: float) -> None:
        """`worker` is dead: its lease is taken back, and nobody waits for it until it pulls."""
        self.counts["lost"] += 1
        self.absent(worker, now)

    def absent(self, worker: int, now: float) -> None:
        """As `lost`, of which this server was told already, before it was started anew."""
        if (lease := self._leases.pop(worker, None)) is not None:
            self.deck.give_back(worker, lease.steps)
        self._away.add(worker)
        self._waiting.discard(worker)
        self.heard.discard(worker)
        self._meet(now)

    def observe(self) -> dict[str, float]:
        """What virtual time tells as well, by the same names; and of pushes that came twice or from
        a lease that was taken back, and of workers that were lost."""
        staleness = np.repeat(*_columns(self._staleness))
        taken, refused = self.counts["taken"], self.counts["stale"]
        merges = {} if self.meeting.kind == "each" else {"merges": self.counts["merges"]}
        return {
            **merges,
            "pushes_refused": refused,
            "pushes_duplicate": self.counts["duplicate"],
            "pushes_revoked": self.counts["revoked"],
            "workers_lost": self.counts["lost"],
            "staleness_mean": float(staleness.mean()) if taken else 0.0,
            "staleness_maximum": int(staleness.max(initial=0)),
            "bytes_sent": self._size,
            "bytes_sent_total": (taken + refused) * self._size,
            **{
                f"staleness_{first}": count
                for first, count in histogram(staleness, self.workers).items()
            },
        }

    def record(self) -> dict[str, Any]:
        """All but the arrays, for a checkpoint. Who has a lease then has none after it."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "version": self.version,
            "pending": self._pending,
            "sequences": list(self._sequences),
            "counts": dict(self.counts),
            "staleness": sorted(self._staleness.items()),
            "deck": self.deck.to_json([lease.steps for lease in self._leases.values()]),
        }

    def recall(self, record: dict[str, Any]) -> None:
        """Goes on from what `record` gave; the deck and the arrays are restored already."""
        self.step, self.version = record["step"], record["version"]
        self._pending = record["pending"]
        self._sequences = list(record["sequences"])
        self._settled = list(record["sequences"])
        self.counts = Counter(record["counts"])
        self._staleness = Counter(dict(record["staleness"]))

    @property
    def pushes(self) -> list[int]:
        """The number of the last push of each worker that was settled."""
        return list(self._settled)

    @property
    def finished(self) -> bool:
        """Whether all steps are made, and merged."""
        return self.step >= self.total and not self._pending

    # What a push changes --------------------------------------------------------------------------

    def _take(self, worker: int, lease: Lease, pushed: Pushed, staleness: int, now: float) -> None:
        metrics = self.method.take(worker, lease, pushed, staleness)
        self.step += len(lease.steps)
        self._staleness[staleness] += 1
        self.counts["taken"] += 1
        kind, count = self.meeting.kind, self.meeting.count
        if kind == "each":
            self.version += 1
        else:
            self._pending += 1
        if kind == "buffer":
            if self._pending >= count:
                self._merge()
            self.method.fetch(worker)
        if kind == "quorum":
            self._waiting.add(worker)
        self._meet(now)
        taken = Taken(worker, lease.epoch, lease.sequence, lease.steps, staleness, metrics)
        self._on_taken(taken)

    def _meet(self, now: float) -> None:
        """Merges where it is time to."""
        if not self._pending:
            return
        expected = set(range(self.workers)) - self._away
        enough = self._pending >= min(self.meeting.count, len(expected))
        if self.meeting.kind == "quorum" and self._deadline is None and enough:
            self._deadline = now + self.meeting.grace
        late = self._deadline is not None and now > self._deadline
        all_there = bool(expected) and expected <= self._waiting
        if late or all_there or self.step >= self.total:  # or nobody comes any more
            self._begin_again(now)

    def _begin_again(self, now: float) -> None:
        self._merge()
        waited, self._waiting, self._deadline = sorted(self._waiting), set(), None
        for worker in waited:
            self._lend(worker, now)

    def _merge(self) -> None:
        self.method.merge(self._pending)
        self.version, self._pending = self.version + 1, 0
        self.counts["merges"] += 1

    # Leases ---------------------------------------------------------------------------------------

    def _answer(self, worker: int, now: float, outcome: Outcome) -> Answer:
        if worker not in self._leases and worker not in self._waiting | self._away:
            self._lend(worker, now)
        return Answer(outcome, self._leases.get(worker), self.finished)

    def _lend(self, worker: int, now: float) -> None:
        steps = self.deck.take(worker)
        if steps is None:
            return
        self._sequences[worker] += 1
        parameters = self.method.own(worker)
        self._leases[worker] = Lease(
            self.epoch,
            self._sequences[worker],
            steps,
            self.version,
            now,
            parameters,
            self.method.buffers,
        )


def _columns(counted: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array(sorted(counted), np.int64)
    return keys, np.array([counted[key] for key in keys.tolist()], np.int64)
