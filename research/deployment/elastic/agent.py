"""The agent of a host: it starts the host's workers, and does what the controller says.

An agent holds a lease: it and the controller tell each other that they live, every half second.
One that has not heard of the controller for `LEASE_SECONDS` ends its workers, before the
controller, who waits a little longer, gives their places to others: two generations never train in
one run folder.
"""

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from research.deployment.elastic.copies import CopyServer, get, put
from research.deployment.elastic.identity import identity
from research.deployment.elastic.messages import Connection, Message
from research.deployment.elastic.options import Options
from research.deployment.elastic.places import Places, facts_of
from research.deployment.elastic.worker import Worker
from research.errors import Preempted
from research.training import snapshot_files

BEAT_SECONDS = 0.5
LEASE_SECONDS = 5.0
"""Silence after which an agent takes the controller, or the way to it, for lost."""


class Agent:
    """Of one host; `serve` returns the exit status of its launch."""

    def __init__(
        self, options: Options, address: tuple[str, int], program: list[str], lifeline: int
    ):
        """`address` is the controller's."""
        self.events: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        """What happens: its kind, and what `_on_<kind>` is told. Signal handlers may put, too."""
        self._options, self._address = options, address
        self._identity = identity(options.command)
        self._places = Places(options, program, lifeline, self.events.put)
        self._link: Connection | None = None
        self._heard = self._alone_since = time.monotonic()
        self._dialing = self._told_alone = False
        self._next_beat = 0.0
        self._status: int | None = None
        self._generation = 0
        self._quiet = False  # a generation trains, and does not start
        self._run = _run_of(options.command)  # identity and folder, once they are known
        self._copies: CopyServer | None = None
        self._peer: tuple[str, int] | None = None  # where copies of our snapshots go
        self._signals: list[int] = []

    def serve(self) -> int:
        """Takes part until the run is over."""
        try:
            while self._status is None:
                self._places.fill(self._quiet)
                with contextlib.suppress(Empty):
                    event = self.events.get(timeout=0.1)
                    while self._status is None:  # all that came, as the controller does
                        kind, *what = event
                        getattr(self, f"_on_{kind}")(*what)
                        event = self.events.get_nowait()
                self._tick(time.monotonic())
            return self._status
        finally:
            self._places.end()
            for other in (self._copies, self._link):
                if other is not None:
                    other.close()

    def _tick(self, now: float) -> None:
        if self._link is not None and now - self._heard > LEASE_SECONDS:
            self._lost()
        if self._link is None:
            self._look_for_controller(now - self._alone_since)
        elif now >= self._next_beat:
            self._beat()

    # The way to the controller --------------------------------------------------------------

    def _look_for_controller(self, silence: float) -> None:
        where = "{}:{}".format(*self._address)
        if self._signals and not self._places.active():
            self._say("stopped; what was saved is safe")
            self._status = Preempted.STATUS
        elif silence > self._options.give_up_seconds:
            self._say(
                f"error: nobody answers at the rendezvous {where} for {silence:.0f} s: check that "
                f"its host runs `research launch`, and that host {self._options.host} reaches it"
            )
            self._status = Preempted.STATUS if self._run else 2
        elif silence > 3 and not self._told_alone:
            self._told_alone = True
            self._say(f"elastic: waiting for the rendezvous {where}")
        if not self._dialing:
            self._dialing = True
            self._aside(self._dial)

    def _dial(self) -> None:
        link = None
        with contextlib.suppress(OSError):
            link = socket.create_connection(self._address, 2.0)
        if link is None:
            time.sleep(0.3)
        self.events.put(("dialed", link))

    def _on_dialed(self, link: socket.socket | None) -> None:
        self._dialing = False
        if link is None:
            return
        self._heard, self._told_alone = time.monotonic(), False
        self._link = Connection(link, lambda its, message: self.events.put(("link", its, message)))
        if self._copies is None:
            self._copies = CopyServer(self._link.address, self._folder)
        self._link.send(
            hello=self._options.host,
            slots=self._options.processes,
            identity=self._identity,
            copies=self._copies.port,
            run=self._run,
        )
        for worker in self._places.free():
            if worker.declared is not None:
                self._tell(event="declared", declared=worker.declared)
                return

    def _on_link(self, link: Connection, message: Message | None) -> None:
        if link is not self._link:
            return
        if message is None:
            self._lost()
        else:
            self._heard = time.monotonic()
            getattr(self, f"_do_{message.pop('do')}")(**message)

    def _lost(self) -> None:
        """Nobody may train for a controller that may have given the places to others."""
        if self._link is not None:
            self._link.close()
        self._link, self._alone_since = None, time.monotonic()
        self._places.kill()

    def _tell(self, **message: Any) -> None:
        if self._link is not None:
            self._link.send(**message)

    def _beat(self) -> None:
        self._next_beat = time.monotonic() + BEAT_SECONDS
        self._places.replace_stopped()
        self._places.fill(self._quiet)  # what is told to be free is there
        free, folder, held = self._places.free(), self._folder(), None
        if folder is not None and not self._places.active():
            files = snapshot_files.held(folder)
            held = [
                [file.generation, file.step, file.rank, file.part, file.parts] for file in files
            ]
        ready = sum(worker.declared is not None for worker in free)
        self._tell(event="beat", free=len(free), ready=ready, held=held)

    # What the controller says ---------------------------------------------------------------

    def _do_beat(self, run: dict[str, str], peer: list[Any] | None, quiet: bool) -> None:
        self._run = run or self._run
        self._peer = (peer[0], peer[1]) if peer else None
        self._quiet = quiet

    def _do_say(self, text: str) -> None:
        self._say(f"elastic: {text}")

    def _do_exit(self, status: int, text: str = "", clean: bool = False) -> None:
        if text:
            self._say(text)
        if clean and (folder := self._folder()) is not None:
            self._places.end()
            with contextlib.suppress(OSError):
                snapshot_files.clear(folder)
        self._status = status

    def _do_fetch(self, files: list[list[Any]], ticket: int) -> None:
        folder = self._folder()

        def fetch() -> None:
            good = folder is not None and all(
                (folder / name).exists() or get(address, port, name, folder)
                for address, port, name in files
            )
            self.events.put(("fetched", ticket, good))

        self._aside(fetch)

    def _on_fetched(self, ticket: int, good: bool) -> None:
        self._tell(event="fetched", ticket=ticket, good=good)

    def _do_start(
        self,
        generation: int,
        ranks: list[int],
        words: list[str],
        environment: dict[str, str],
        several: bool,
    ) -> None:
        self._generation = generation
        environment = environment | {
            "RESEARCH_GENERATION": str(generation),
            "RESEARCH_HOST": self._options.host,
            "RESEARCH_SERVICE": "apart",
            # gRPC would ask an HTTP proxy, if there is one, for the way.
            "no_grpc_proxy": environment["RESEARCH_COORDINATOR"].rpartition(":")[0],
        }
        if several and self._link is not None:
            environment["RESEARCH_ADDRESS"] = self._link.address
        missing = self._places.start(generation, ranks, words, environment)
        pids = {str(worker.rank): worker.pid for worker in self._places.active()}
        self._tell(event="started", pids=pids)
        for rank in missing:  # it died just now
            gone = {"rank": rank, "generation": generation, "status": -signal.SIGKILL}
            self._tell(event="ended", **gone, by_us=False, facts={})

    def _do_end(self, reason: str | None = None) -> None:
        if reason is None:
            self._places.kill()
        else:
            self._places.leave(reason)
        self._tell_if_clear()

    def _do_rest(self, rank: int) -> None:
        self._places.rest(rank)

    def _do_stacks(self) -> None:
        self._tell(event="stacks", stopped=self._places.write_stacks())

    # What workers tell ----------------------------------------------------------------------

    def _on_facts(self, worker: Worker, facts: dict[str, Any]) -> None:
        if "declared" in facts:
            self._places.declared(worker, facts["declared"])
            self._tell(event="declared", declared=worker.declared)
            return
        worker.facts |= facts
        if "snapshot" in facts:
            self._copy(worker, facts["snapshot"])
        if worker.rank is not None:
            self._tell(event="facts", rank=worker.rank, generation=worker.generation, facts=facts)
        elif "failed" in facts:
            self._tell(event="failed", facts=facts)

    def _on_ended(self, worker: Worker) -> None:
        complaint = self._places.ended(worker)
        if complaint is not None:
            self._tell(event="failed", facts={"failed": complaint})
        if worker.rank is not None:
            stopped = self._places.stopped()
            self._tell(event="ended", **facts_of(worker), stopped=stopped)
            self._tell_if_clear()

    def _tell_if_clear(self) -> None:
        if not self._places.active():
            self._beat()
            self._tell(event="clear", generation=self._generation)

    def _folder(self) -> Path | None:
        """Of our snapshots, once the run is known."""
        if not self._run:
            return None
        return snapshot_files.folder_of(self._run["identity"], self._options.host)

    def _copy(self, worker: Worker, step: int) -> None:
        """Gives a copy of a new snapshot to the next host, and forgets old ones."""
        folder, peer = self._folder(), self._peer
        if folder is None or worker.rank is None or worker.generation is None:
            return
        snapshot_files.forget(folder, worker.generation)
        if peer is not None:
            path = folder / snapshot_files.name_of(worker.generation, step, worker.rank)
            self._aside(lambda: put(*peer, path))

    # Signals --------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        """This host is to leave: the controller decides whether the others go on."""
        self._signals.append(number)
        if self._signals.count(signal.SIGINT) > 1:
            self._say("interrupted; what was saved is safe: go on with `research resume RUN`")
            self._status = 1
            return
        self._places.close()
        name = signal.Signals(signal.SIGTERM if number == signal.SIGHUP else number).name
        self._tell(event="leaving", reason=name)

    def _aside(self, target: Callable[[], object]) -> None:
        Thread(target=target, daemon=True).start()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _run_of(command: list[str]) -> dict[str, str]:
    """What the memory of hosts may hold snapshots of: the run that a command resumes."""
    if command[0] != "resume":
        return {}
    folder = Path(command[1]).absolute()
    with contextlib.suppress(OSError):
        return {"identity": (folder / ".identity").read_text(), "folder": str(folder)}
    return {}
