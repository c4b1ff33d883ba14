"""A worker: a process that stands by, takes part in one generation, and ends with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from research.deployment.elastic.signals import unheard

TAIL_LINES = 200
"""How many lines of output are kept of a worker that does not print."""

LINES_TOLD = 30

Put = Callable[[tuple[Any, ...]], None]


class Worker:
    """A process of this host. Hands `("facts", worker, facts)` and at last `("ended", worker)` to
    `put`, from threads of its own."""

    def __init__(self, command: list[str], place: int, lifeline: int, put: Put):
        self.place = place
        self.generation: int | None = None
        self.rank: int | None = None
        self.declared: dict[str, Any] | None = None
        self.facts: dict[str, Any] = {"phase": "starting"}
        """The last of every kind that it told."""
        self.status: int | None = None
        """Exit status once it ended; the negative signal number if a signal ended it."""
        self.ended_by_us = False
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        beats, its_beats = os.pipe()
        its_orders, self._orders = os.pipe()
        environment = os.environ | {
            "RESEARCH_BEATS": str(its_beats),
            "RESEARCH_ORDERS": str(its_orders),
            "RESEARCH_LIFELINE": str(lifeline),
        }
        # Two processes cannot share an accelerator; whoever knows better says so.
        environment.setdefault("JAX_PLATFORMS", "cpu")
        try:
            with unheard():
                self.process = subprocess.Popen(
                    command,
                    env=environment,
                    pass_fds=[its_beats, its_orders, lifeline],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # what it starts ends with it, as one group
                )
        finally:
            os.close(its_beats)
            os.close(its_orders)
        self.pid = self.process.pid
        self._put = put
        self._readers = [
            self._thread(self._read_beats, os.fdopen(beats, "rb")),
            self._thread(self._read_output, self.process.stdout, sys.stdout),
            self._thread(self._read_output, self.process.stderr, sys.stderr),
        ]
        self._thread(self._await_end)

    def take_part(self, generation: int, rank: int, place: dict[str, Any]) -> None:
        """Sends it into a generation: its environment and the words of its command."""
        self.generation, self.rank = generation, rank
        if rank == 0:
            self._show()
        self.order(place)

    def order(self, order: dict[str, Any]) -> None:
        """Writes it a line; one that has ended does not read it."""
        with contextlib.suppress(OSError):
            os.write(self._orders, json.dumps(order).encode() + b"\n")

    def signal(self, number: int) -> None:
        """Signals it and all that it started, unless it has ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended just now
                os.killpg(self.pid, number)

    def kill(self) -> None:
        self.ended_by_us = True
        self.signal(signal.SIGKILL)

    def last_lines(self) -> list[str]:
        """The end of what it printed."""
        return list(self._tail)[-LINES_TOLD:]

    def is_stopped(self) -> bool:
        """Whether a signal holds it still, as SIGSTOP does; known on Linux."""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "Tt"
        return False

    def _thread(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    def _read_beats(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                with contextlib.suppress(ValueError):  # torn by its death
                    self._put(("facts", self, json.loads(line)))

    def _read_output(self, stream: IO[bytes], ours: IO[str]) -> None:
        # A bounded readline: a progress bar without a line break must not grow without end.
        with stream:
            for line in iter(lambda: stream.readline(4096), b""):
                text = line.decode(errors="replace")
                self._tail.append(text.rstrip())
                if self.rank == 0:
                    ours.write(text)
                    ours.flush()

    def _show(self) -> None:
        """What it said before it was the first."""
        for line in self._tail:
            print(line, file=sys.stderr, flush=True)

    def _await_end(self) -> None:
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13
            # Until it is reaped, the number of its group is nobody else's: end what it left behind.
            # (Who asked for its status before has reaped it.)
            with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                os.killpg(self.pid, signal.SIGKILL)
        status = self.process.wait()
        for reader in self._readers:
            reader.join(1.0)  # not longer: what it started may hold a pipe open
        with contextlib.suppress(OSError):
            os.close(self._orders)
        self.status = status
        self._put(("ended", self))
