"""The hosts that are there, as their agents tell; and who may not come."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.deployment.elastic.identity import Identity, difference
from research.deployment.elastic.messages import Connection, Message
from research.training.snapshot_files import Held, complete, name_of


@dataclass
class Member:
    """A host, by its agent."""

    name: str
    link: Connection
    slots: int
    identity: Identity
    copies: int
    """Port where it takes and gives copies of snapshots."""
    heard: float
    """When it last said something (monotonic seconds)."""
    free: int = 0
    """Places for workers of the next generation."""
    ready: int = 0
    """Of these, those where one stands by."""
    held: list[Held] = field(default_factory=list)
    """Snapshots in its memory."""
    ranks: list[int] = field(default_factory=list)
    """Of its workers in the present generation."""
    leaving: str | None = None
    """The signal that it has to leave for."""
    clear: bool = True
    """Its workers of the generation are gone."""
    fetched: bool = False
    """It has all of the snapshot that the generation begins with."""


class Members:
    """All hosts, in the order in which they came."""

    def __init__(self, several: bool):
        self._several = several
        self._by_link: dict[Connection, Member] = {}
        self._told: set[str] = set()

    def __iter__(self) -> Any:
        return iter(list(self._by_link.values()))

    def __len__(self) -> int:
        return len(self._by_link)

    def of(self, link: Connection) -> Member | None:
        """Whose connection it is."""
        return self._by_link.get(link)

    def at(self, rank: int) -> Member | None:
        """On whose host the worker of that rank is."""
        return next((member for member in self if rank in member.ranks), None)

    def taking_part(self) -> list[Member]:
        """Those with workers in the present generation."""
        return [member for member in self if member.ranks]

    def free(self) -> int:
        """Places for workers, of all hosts."""
        return sum(member.free for member in self)

    def in_words(self) -> str:
        """Who is there."""
        return ", ".join(f"{member.name} with {member.free}" for member in self) or "none"

    def welcome(self, link: Connection, hello: Message) -> str | None:
        """Takes a host in, or returns a sentence that says why not."""
        name, identity = hello["hello"], hello["identity"]
        for other in self:
            if other.name == name:
                return f"a host {name} is there already: give each a --host of its own"
            complaint = difference(name, identity, other.name, other.identity)
            complaint = complaint or _unreachable(name, link.peer, other.name, other.link.peer)
            if complaint is not None:
                return complaint
        self._by_link[link] = Member(
            name, link, hello["slots"], identity, hello["copies"], time.monotonic()
        )
        return None

    def remove(self, member: Member) -> None:
        """It is gone."""
        self._by_link.pop(member.link, None)
        member.link.close()

    def send(self, **message: Any) -> None:
        """Tells all."""
        for member in self:
            member.link.send(**message)

    def say(self, text: str, once: bool = False) -> None:
        """Lets every host print a line, some only once."""
        if not (once and text in self._told):
            self._told.add(text)
            self.send(do="say", text=text)

    def beat(self, run: dict[str, str], quiet: bool) -> None:
        """Tells all that we live, and each who keeps copies of its snapshots: the next one."""
        members = list(self)
        for member, next_one in zip(members, members[1:] + members[:1], strict=True):
            peer = None if next_one is member else (next_one.link.peer, next_one.copies)
            member.link.send(do="beat", run=run, peer=peer, quiet=quiet)

    def bring_together(self, ticket: int) -> int | None:
        """Step of the newest snapshot that the hosts have all parts of; asks those that take part
        to fetch the files that they lack. None, if there is no whole one."""
        held = [file for member in self for file in member.held]
        for at in complete(held)[:1]:
            for member in self.taking_part():
                parts = {file.part for file in member.held if file.at == at}
                files = []
                for other in self:
                    for file in other.held:
                        if file.at == at and file.part not in parts:
                            parts.add(file.part)
                            files.append((other.link.peer, other.copies, file.path.name))
                member.link.send(do="fetch", files=files, ticket=ticket)
            return at[0]
        return None


def files_of(held: list[Any], identity: str) -> list[Held]:
    """What an agent told of its snapshots."""
    return [
        Held(generation, step, rank, part, tuple(parts), identity, Path(name))
        for generation, step, rank, part, parts in held
        for name in [name_of(generation, step, rank)]
    ]


def _unreachable(name: str, peer: str, other: str, its: str) -> str | None:
    """Of two hosts of which one is known by an address that only itself can use."""
    here, there = peer.startswith("127."), its.startswith("127.")
    if here == there:
        return None
    return (
        f"host {name if here else other} comes to the rendezvous from {peer if here else its}, "
        "where no other host reaches it: its name resolves to the loopback; give as --rendezvous "
        "the address of its network"
    )
