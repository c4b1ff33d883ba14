"""The controller of a run: which of those who are there make the next generation, and when it ends.

It runs in the supervisor that has the rendezvous address, and remembers nothing that the agents of
the hosts cannot tell again: when it dies and comes back, they join it anew. It goes round

    gathering    until the most processes are free, or the least for a while
    starting     hosts fetch what they lack of the newest snapshot
    running      until all workers are done, or something ends it:
                 a worker that died or hangs, a host that fell silent     the rest is killed
                 more processes than take part, a host that leaves        all save at one step
    ending       until every agent says that its workers are gone
"""

import contextlib
import json
import socket
import threading
import time
import traceback
from queue import Empty, SimpleQueue
from typing import Any

from research.deployment.elastic.agent import BEAT_SECONDS, LEASE_SECONDS
from research.deployment.elastic.generation import End, Generation
from research.deployment.elastic.history import History
from research.deployment.elastic.layout import Layout
from research.deployment.elastic.members import Member, Members, files_of
from research.deployment.elastic.messages import Connection, Message
from research.deployment.elastic.options import Options
from research.deployment.elastic.rendezvous import Rendezvous
from research.deployment.elastic.run import Run
from research.errors import Preempted, RunError, UserError
from research.parallel.supervision import GROWTH

LOST_SECONDS = LEASE_SECONDS + 3.0
"""Silence after which a host is lost: later than its agent has ended its workers."""

LEAVE_SECONDS = 120.0
"""How long a generation that was asked to save may take to."""

FETCH_SECONDS = 60.0
"""How long hosts may take to fetch a snapshot."""

FUTILE, KILLED = 3, 20
"""Generations one after the other that may end without a step that is new, by errors of their own,
and whatever the cause."""

CALM_SECONDS = 5.0
"""A generation that has just begun is not ended for a larger one."""

SILENT_SECONDS = 2.0
"""A host that says nothing for so long may soon be lost."""


class Controller:
    """Serves the rendezvous, in a thread of its own, until the run is over."""

    def __init__(self, options: Options, host: str, port: int):
        """Raises OSError where it cannot listen there."""
        self.options, self.host = options, host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, port), family=family)
        self.port: int = self._server.getsockname()[1]
        self._several = options.rendezvous is not None
        self._events: SimpleQueue[tuple[Connection, Message | None]] = SimpleQueue()
        self._members = Members(self._several)
        self._run = Run(options)
        self._state, self._since = "gathering", time.monotonic()
        self._generation: Generation | None = None
        self._number = 0
        self._snapshot: int | None = None
        self._futile = self._killed = 0
        self._promised = options.most  # processes that the next generation waits for
        self._calm = CALM_SECONDS
        self._history = History()
        self._rendezvous = Rendezvous()
        self._next_beat = 0.0
        self._over = False
        for target in (self._accept, self._serve):
            threading.Thread(target=target, name="controller", daemon=True).start()

    def close(self) -> None:
        """Nobody needs it any more."""
        self._over = True
        self._server.close()
        self._rendezvous.close()

    def _accept(self) -> None:
        while not self._over:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            Connection(link, lambda its, message: self._events.put((its, message)))

    def _serve(self) -> None:
        try:
            self._serve_until_over()
        except Exception:  # a fault of ours: nobody may wait for us
            traceback.print_exc()
            self._over = True
            self._members.send(do="exit", status=1, text="error: the controller failed, see above")

    def _serve_until_over(self) -> None:
        while not self._over:
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=0.1)
                while not self._over:  # all that came: else who was heard of late seems silent
                    self._on_message(*event)
                    event = self._events.get_nowait()
            if not self._over:
                self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        if now >= self._next_beat:
            self._beat(now)
        for member in self._members:
            if now - member.heard > LOST_SECONDS:
                self._lose(member)
        getattr(self, f"_while_{self._state}")(now)

    def _beat(self, now: float) -> None:
        self._next_beat = now + BEAT_SECONDS
        busy = self._generation is not None and self._generation.watch.step() < 0
        self._members.beat(self._run.place, quiet=self._state == "running" and not busy)

    def _become(self, state: str) -> None:
        self._state, self._since = state, time.monotonic()

    # What agents tell -----------------------------------------------------------------------

    def _on_message(self, link: Connection, message: Message | None) -> None:
        member = self._members.of(link)
        if message is None:
            link.close()
            if member is not None:
                self._lose(member)
        elif "hello" in message:
            complaint = self._members.welcome(link, message)
            if complaint is not None:
                link.send(do="exit", status=2, text=f"error: {complaint}")
                return
            self._run.place = self._run.place or message["run"]
            if self._several:
                name, slots = message["hello"], message["slots"]
                self._members.say(f"host {name} is there, with room for {slots}")
            self._beat(time.monotonic())
        elif member is not None:
            member.heard = time.monotonic()
            getattr(self, f"_on_{message.pop('event')}")(member, **message)

    def _on_declared(self, member: Member, declared: dict[str, Any]) -> None:
        try:
            if self._run.declare(declared):
                return
            text = f"the config on host {member.name} is another than on the others"
        except UserError as error:
            text = str(error)
        self._exit(2, f"error: {text}")

    def _on_beat(self, member: Member, free: int, ready: int, held: list[Any] | None) -> None:
        member.free, member.ready = free, ready
        if held is not None:
            member.held = files_of(held, self._run.identity)

    def _on_started(self, member: Member, pids: dict[str, int]) -> None:
        self._history.generations[-1].pids |= pids

    def _on_facts(self, member: Member, rank: int, generation: int, facts: dict[str, Any]) -> None:
        its = self._generation
        if its is None or generation != its.number or self._state == "gathering":
            return
        if self._run.begins(facts):
            self._history.write(self._run.folder)
            self._beat(time.monotonic())
        if "collectives" in facts:
            its.collectives = facts["collectives"]
            return
        its.watch.tell(rank, time.monotonic(), facts.get("step"), facts.get("phase"))
        if "restored" in facts and rank == 0:
            self._history.restored(facts["restored"], facts["source"])
            self._history.write(self._run.folder)
        if "step" in facts and self._history.stepped(facts["step"]):
            self._futile = self._killed = 0

    def _on_failed(self, member: Member, facts: dict[str, Any]) -> None:
        where = f" (host {member.name})" if self._several else ""
        self._exit(facts.get("status", 1), f"error: {facts['failed']}{where}")

    def _on_ended(
        self, member: Member, rank: int, generation: int, status: int, **how: Any
    ) -> None:
        its = self._generation
        if its is not None and generation == its.number and not how["by_us"]:
            its.ended(member.name, rank, status, **how)

    def _on_clear(self, member: Member, generation: int) -> None:
        member.clear = member.clear or generation == self._number

    def _on_fetched(self, member: Member, ticket: int, good: bool) -> None:
        if self._state != "starting" or ticket != self._number:
            return
        member.fetched = True
        if not good:
            self._members.say(f"host {member.name} could not fetch the newest snapshot")
            self._snapshot = None  # a checkpoint, then

    def _on_stacks(self, member: Member, stopped: list[int]) -> None:
        if self._generation is not None:
            self._generation.held_still(stopped)

    def _on_leaving(self, member: Member, reason: str) -> None:
        member.leaving, member.free = reason, 0
        self._leave(reason)

    def _lose(self, member: Member) -> None:
        self._members.remove(member)
        its = self._generation
        if self._state in ("starting", "running") and member.ranks and its and not its.over:
            self._end(End(f"host {member.name} fell silent"))
        elif self._several:
            self._members.say(f"host {member.name} is gone")

    # Gathering ------------------------------------------------------------------------------

    def _while_gathering(self, now: float) -> None:
        waited, free, least = now - self._since, self._members.free(), self.options.least
        why = (
            f"{free} of at least {least} processes are there after {waited:.0f} s (hosts: "
            f"{self._members.in_words()})"
        )
        if self._run.is_declared and free >= least and any(m.ready for m in self._members):
            try:
                layout = self._run.fit(free)
                most = self._run.fit(self.options.most)
                # Later on, whoever is still to come makes another generation.
                enough = min(self._promised, most.processes)
                if layout.processes >= enough or waited > self.options.gather_seconds:
                    self._start(layout)
                    return
            except UserError as error:
                why = str(error)
        if waited > self.options.give_up_seconds:
            saved = (
                f"; what was saved is safe: {self._run.how_to_go_on()}" if self._run.place else ""
            )
            self._exit(Preempted.STATUS, f"error: {why}{saved}")
        elif waited > 10 and free < least:
            self._members.say(
                f"waiting for {least - free} more of at least {least} processes (hosts: "
                f"{self._members.in_words()})",
                once=True,
            )

    # Starting -------------------------------------------------------------------------------

    def _start(self, layout: Layout) -> None:
        # Snapshots of an earlier launch may still be there: theirs are other generations.
        earlier = [file.generation for member in self._members for file in member.held]
        self._number = max([self._number, *earlier]) + 1
        if layout.processes >= self._promised:
            self._calm = CALM_SECONDS
        self._promised = 0
        self._generation = Generation(
            self._number, layout, self.options.hang_seconds, self._several
        )
        rank = 0
        for member in self._members:
            take = min(member.free, layout.processes - rank)
            member.ranks = list(range(rank, rank + take))
            member.clear, member.fetched = not take, False
            rank += take
        self._snapshot = self._members.bring_together(self._number)
        self._rendezvous.begin(self.host, layout.processes)
        self._become("starting")

    def _while_starting(self, now: float) -> None:
        try:
            address = self._rendezvous.address()
        except RunError as error:
            self._exit(1, f"error: {error}")
            return
        taking, waited = self._members.taking_part(), now - self._since
        ready = self._snapshot is None or all(member.fetched for member in taking)
        if address is None or (not ready and waited < FETCH_SECONDS):
            return
        assert self._generation is not None
        layout = self._generation.layout
        hosts = [member.name for member in taking for _ in member.ranks]
        environment = {
            "RESEARCH_COORDINATOR": address,
            "RESEARCH_PROCESSES": str(layout.processes),
            "RESEARCH_HOSTS": json.dumps(hosts),
            "RESEARCH_SNAPSHOT": str(-1 if self._snapshot is None or not ready else self._snapshot),
        }
        names = sorted(set(hosts))
        of = f" of {', '.join(names)}" if self._several else ""
        self._history.start(self._number, layout.processes, str(layout), names)
        self._members.say(
            f"generation {self._number}: {layout.processes} processes{of}, mesh {layout}"
        )
        words = self._run.words(layout)
        for member in taking:
            member.link.send(
                do="start",
                generation=self._number,
                ranks=member.ranks,
                words=words,
                environment=environment,
                several=self._several,
            )
        self._become("running")

    # Running --------------------------------------------------------------------------------

    def _while_running(self, now: float) -> None:
        its = self._generation
        assert its is not None
        if its.done:
            self._after()
            return
        for member in self._members:
            if member.leaving:  # asked for while it started
                self._leave(member.leaving)
                return
        end = its.verdict(
            now,
            self._rendezvous.lives(),
            any(now - member.heard > SILENT_SECONDS for member in self._members),
            lambda: self._members.send(do="stacks"),
        )
        if end is not None:
            self._end(end)
        elif now - self._since > self._calm and its.watch.step() >= 0:
            self._grow(its)

    def _grow(self, its: Generation) -> None:
        """Ends the generation for a larger one, if workers stand by for all of that."""
        here = sum(min(m.ready, m.slots - len(m.ranks)) for m in self._members)
        there = min(its.layout.processes + here, self.options.most)
        if there <= its.layout.processes:
            return
        larger = self._run.fit(there).processes
        ready = sum(member.ready for member in self._members)
        if larger > its.layout.processes and (ready >= larger or not self.options.standby):
            self._promised = larger
            self._calm *= 2  # until there is a larger one
            self._leave(GROWTH)

    def _leave(self, reason: str) -> None:
        """Asks all workers to stop at a step that they agree on."""
        if self._state == "running":
            self._members.send(do="end", reason=reason)
            self._history.end(reason)
            self._become("ending")
        elif self._state == "gathering":
            self._stop_if_all_leave()

    def _end(self, end: End) -> None:
        """Kills what is left of the generation; the run is over if it would end so again."""
        its = self._generation
        assert its is not None
        its.over = True
        if end.final:
            self._exit(end.status, f"error: {end.text}")
            return
        host = self._members.at(end.rest) if end.rest is not None else None
        stacks = f"{self._run.folder}/stacks" if self._run.place else "no folder yet"
        text = end.text.replace("{host}", host.name if host else "?").replace("{folder}", stacks)
        if host is not None:
            host.link.send(do="rest", rank=end.rest)
        self._history.end(text)
        self._members.say(f"{text}: ending generation {its.number}")
        self._members.send(do="end")
        self._become("ending")
        self._killed += 1
        self._futile += end.own
        if self._futile > FUTILE or self._killed > KILLED:
            for line in end.tail:
                self._members.say(line)
            self._exit(1, f"error: {self._killed} generations ended without a new step: {text}")

    # Ending ---------------------------------------------------------------------------------

    def _while_ending(self, now: float) -> None:
        its = self._generation
        assert its is not None
        if all(member.clear for member in self._members):
            self._after()
        elif now - self._since > LEAVE_SECONDS and not its.over:
            self._end(End("the workers did not save in time"))

    def _after(self) -> None:
        """All workers are gone: is there another generation?"""
        its = self._generation
        assert its is not None
        self._rendezvous.end()
        for member in self._members:
            member.ranks = []
        facts = next(iter(its.outcomes.values())) if its.done and not its.over else {}
        reason = str(facts.get("reason", ""))
        self._history.end("finished" if facts.get("phase") == "finished" else reason)
        self._history.write(self._run.folder)
        if facts.get("phase") == "finished":
            text = f"elastic: {self._history.summary(self._run.snapshot_every)}"
            self._exit(0, text, clean=True)
            return
        leaving = [member for member in self._members if member.leaving]
        if facts and reason != GROWTH and len(leaving) in (0, len(self._members)):
            text = f"elastic: stopped by {reason} and saved; {self._run.how_to_go_on()}"
            self._exit(Preempted.STATUS, text, clean=True)
            return
        self._become("gathering")
        self._stop_if_all_leave()
        for member in leaving if not self._over else []:
            member.link.send(do="exit", status=Preempted.STATUS)
            self._members.remove(member)

    def _stop_if_all_leave(self) -> None:
        reasons = [member.leaving for member in self._members if member.leaving]
        if reasons and len(reasons) == len(self._members):
            saved = (
                f": {self._run.how_to_go_on()}"
                if self._run.place
                else " before the run could be saved"
            )
            self._exit(Preempted.STATUS, f"elastic: stopped by {reasons[0]}{saved}")

    def _exit(self, status: int, text: str, clean: bool = False) -> None:
        self._history.end(text)
        self._history.write(self._run.folder)
        self._over = True
        self._members.send(do="exit", status=status, text=text, clean=clean)
