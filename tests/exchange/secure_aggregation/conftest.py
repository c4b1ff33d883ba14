"""What the tests of secure sums share: clients that know each other, and a round by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest

from research.exchange.secure_aggregation import (
    Client,
    Identity,
    Round,
    Server,
    decode,
    encode,
    transcript,
)
from research.exchange.secure_aggregation import client as client_module
from research.exchange.secure_aggregation import server as server_module
from research.exchange.secure_aggregation.keys import signed
from research.exchange.secure_aggregation.messages import Message

SIZE = 5


@lru_cache
def identities(count: int) -> tuple[Identity, ...]:
    return tuple(Identity() for _ in range(count))


def a_round(count: int, threshold: int, **more: object) -> Round:
    more = {"size": SIZE, "smallest": 2} | more
    return Round(tuple(one.public for one in identities(count)), threshold=threshold, **more)


@lru_cache
def some_values(count: int, size: int = SIZE) -> np.ndarray:
    """All over the ring, so that sums wrap."""
    return np.random.default_rng(count).integers(0, 2**32, (count, size), dtype=np.uint32)


def over_the_wire(message: Message) -> Message:
    return decode(encode(message))


@dataclass
class Play:
    """A round by hand: what the server sent last, and what clients answered."""

    round: Round
    values: np.ndarray
    clients: list[Client] = field(default_factory=list)
    inbox: dict[int, Message] = field(default_factory=dict)
    answers: dict[int, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        people = identities(self.round.count)
        self.server = Server(self.round)
        self.clients = [
            Client(self.round, number, one, self.values[number])
            for number, one in enumerate(people)
        ]

    def answer(self, but: Mapping[int, object] | set[int] = frozenset()) -> dict[int, Message]:
        """Answers of all that were sent something, `but` for some; not given to the server yet."""
        asked = self.inbox or dict.fromkeys(range(self.round.count))
        self.answers = {
            number: over_the_wire(
                self.clients[number].begin()
                if message is None
                else self.clients[number].receive(message)
            )
            for number, message in asked.items()
            if number not in but
        }
        return self.answers

    def deliver(self) -> dict[int, Message]:
        """Gives the server the answers, and takes what it sends next."""
        for message in self.answers.values():
            self.server.receive(message)
        sent = self.server.advance()
        self.inbox = {number: over_the_wire(message) for number, message in sent.items()}
        return self.inbox

    def until(self, stage: int, drops: Mapping[int, int] | None = None) -> "Play":
        """All stages before `stage`; clients are silent from the stage on that `drops` says."""
        for before in range(stage):
            self.answer({one for one, when in (drops or {}).items() if when <= before})
            self.deliver()
        return self

    def result(self) -> np.ndarray:
        for message in self.answers.values():
            self.server.receive(message)
        return self.server.result()


def play(count: int = 5, threshold: int = 3, **more: object) -> Play:
    return Play(a_round(count, threshold, **more), some_values(count))


@pytest.fixture
def quick_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signature is verified once, and not by every client of the process anew."""
    once: Callable[..., bool] = lru_cache(maxsize=None)(signed)
    for module in (client_module, server_module, transcript):
        monkeypatch.setattr(module, "signed", once)
