"""What an elastic launch was asked for."""

import re
from dataclasses import dataclass

from research.errors import UserError


@dataclass(frozen=True)
class Options:
    """Of `research launch --elastic`, the same on every host but for `processes` and `host`."""

    command: list[str]
    """`train CONFIG ...` or `resume RUN ...`."""

    processes: int
    """Of this host."""

    least: int
    most: int
    """Processes that take part, of all hosts."""

    rendezvous: str | None = None
    """host:port of the controller, where there are several hosts."""

    host: str = "localhost"
    """Name of this host, which no other has."""

    gather_seconds: float = 15.0
    """How long a generation waits for the most processes when there are enough already."""

    give_up_seconds: float = 300.0
    """How long it waits for the least, and a host for the controller."""

    hang_seconds: float = 30.0
    """A step may take as long, or 20 × the median if that is more."""

    return_seconds: float = 20.0
    """How long a process that died stays out, twice as long each time it dies again."""

    standby: bool = True
    """Whether workers stand by for the next generation."""


def elastic_range(text: str) -> tuple[int, int]:
    """The least and the most processes of `2:4`. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"--elastic {text} must be LEAST:MOST processes, as in 2:4, with 1 ≤ LEAST ≤ MOST"
        )
    return int(match[1]), int(match[2])


def place_of(rendezvous: str) -> tuple[str, int]:
    """Host and port. Raises UserError where it is not host:port."""
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--rendezvous {rendezvous} must be HOST:PORT of the host that serves it")
    return host.strip("[]"), int(port)
