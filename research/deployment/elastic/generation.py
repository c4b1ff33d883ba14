"""One generation as the controller sees it: what its workers tell, and whether it has to end."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from research.deployment.elastic.blame import Ended, cause
from research.deployment.elastic.layout import Layout
from research.deployment.elastic.watch import Watch
from research.errors import Preempted

SETTLE_SECONDS = 0.3
SETTLE_SECONDS_OF_HOSTS = 1.0
"""After a first failure, how long others may be told of: only then is the cause known."""

STACKS_SECONDS, EXPLAIN_SECONDS = 2.0, 10.0
"""How long hung processes have to write where they are, and to say what they may wait in."""


@dataclass
class End:
    """Why a generation ends."""

    text: str
    final: bool = False
    """The run would end so again."""
    own: bool = False
    """By an error of the program: the run may end so again."""
    status: int = 1
    rest: int | None = None
    """Rank whose place stays empty for a while."""
    tail: list[str] = field(default_factory=list)
    """Of the culprit's output."""


class Generation:
    """Fresh workers that train together, until one of them cannot."""

    def __init__(self, number: int, layout: Layout, hang_seconds: float, several: bool):
        self.number, self.layout = number, layout
        self.began = time.monotonic()
        self.watch = Watch(hang_seconds, self.began)
        for rank in range(layout.processes):
            self.watch.tell(rank, self.began)
        self.outcomes: dict[int, dict[str, Any]] = {}
        """By rank: what workers told that ended as they should."""
        self.over = False
        """It is being killed: how workers end now says nothing."""
        self.collectives = ""
        """Of the compiled step, as a worker told when one seemed to hang."""
        self._several = several
        self._failures: list[Ended] = []
        self._hung: tuple[int, float, float] | None = None  # rank, silence, and since when known
        self._stopped: list[int] = []

    @property
    def done(self) -> bool:
        """Whether all workers have finished, or saved at a step that they agreed on."""
        return len(self.outcomes) == self.layout.processes

    def ended(self, host: str, rank: int, status: int, **how: Any) -> None:
        """A worker of `host` is gone."""
        facts = how["facts"]
        self.held_still(how.get("stopped", []))
        if status in (0, Preempted.STATUS) and facts.get("phase") in ("finished", "stopped"):
            self.outcomes[rank] = facts
        elif not self.over:
            ended = Ended(host, rank, how.get("pid", 0), status, facts, how.get("tail", []))
            self._failures.append(ended)

    def held_still(self, ranks: list[int]) -> None:
        """These are stopped by a signal, and cannot say where they are."""
        self._stopped += ranks

    def verdict(
        self, now: float, service_lives: bool, silent: bool, dump: Callable[[], None]
    ) -> End | None:
        """Why it has to end, if so. Calls `dump` once, so that hung workers write their stacks.

        While some host is `silent`, that others fail may be a consequence: its end will be told.
        """
        if not service_lives:
            return End("the coordination service died")
        if self._failures:
            settle = SETTLE_SECONDS_OF_HOSTS if self._several else SETTLE_SECONDS
            if now - self._failures[0].at < settle or (silent and self._may_follow()):
                return None
            return self._blame()
        if self._hung is None:
            if (hung := self.watch.hung(now)) is not None:
                self._hung = (*hung, now)
                dump()
        elif now - self._hung[2] > (STACKS_SECONDS if self.collectives else EXPLAIN_SECONDS):
            return self._name_the_hung()
        return None

    def _may_follow(self) -> bool:
        """Whether the failures may all come from a peer that is gone or silent."""
        culprit, _, final = cause(self._failures, self._several)
        return not final and (culprit.status > 0 or culprit.status == -signal.SIGABRT)

    def _blame(self) -> End:
        culprit, text, final = cause(self._failures, self._several)
        if self._stopped and self._may_follow():
            # Others fail, or JAX ends them, since one is silent.
            rank = self._stopped[0]
            return End(f"process {rank} is stopped by a signal", rest=rank)
        status = 2 if culprit.status == 2 else 1
        own = culprit.status > 0
        return End(text, final, own, status, culprit.rank, culprit.tail)

    def _name_the_hung(self) -> End:
        assert self._hung is not None
        rank, seconds, _ = self._hung
        is_stopped = bool(self._stopped)
        if is_stopped:
            rank = self._stopped[0]
        phase = self.watch.workers[rank].phase
        name = f"process {rank}" + (" on host {host}" if self._several else "")
        last = self.watch.step()
        after = f" after step {last}" if last >= 0 else ""
        waits = f"; a step waits for others in {self.collectives}" if self.collectives else ""
        text = (
            f"no step for {seconds:.0f} s (median {self.watch.median:.2f} s){after}: {name} "
            f"is {'stopped by a signal' if is_stopped else phase}{waits}; the stacks of all "
            "processes are in {folder}"
        )
        return End(text, rest=rank if is_stopped or self._several else None)
