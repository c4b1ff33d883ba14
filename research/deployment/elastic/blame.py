"""Which of several failures is the cause of the others, and whether it would come again."""

import signal
import time
from dataclasses import dataclass, field
from typing import Any

from research.parallel.launch import last_error


@dataclass
class Ended:
    """A worker that ended before its generation did."""

    host: str
    rank: int
    pid: int
    status: int
    facts: dict[str, Any]
    tail: list[str]
    at: float = field(default_factory=time.monotonic)


def cause(failures: list[Ended], several: bool) -> tuple[Ended, str, bool]:
    """The failure, in the order of their times, that the others follow from; a sentence about it;
    and whether it is final, since the run would end so again.

    A signal from outside is never the consequence of a peer's death, but SIGABRT is: so does JAX
    end a process whose peer has fallen silent.
    """
    said = [ended for ended in failures if "failed" in ended.facts]
    killed = [ended for ended in failures if ended.status < 0 and ended.status != -signal.SIGABRT]
    culprit = (said or killed or failures)[0]
    where = f" on host {culprit.host}" if several else ""
    if said:
        first = min(said, key=lambda ended: ended.rank)
        return first, f"{first.facts['failed']}", True
    name = f"process {culprit.rank}{where} (pid {culprit.pid})"
    if culprit.status < 0:
        return culprit, f"{name} was killed by {signal.Signals(-culprit.status).name}", False
    reason = last_error(culprit.tail)
    return culprit, f"{name} ended with status {culprit.status}: {reason}", False
