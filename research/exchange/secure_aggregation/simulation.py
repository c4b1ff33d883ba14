"""A whole secure sum in one process: every message as bytes, clients that drop out, what it costs.

Nothing here is part of the protocol: it carries messages between `Client`s and a `Server` as any
transport would.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research.exchange.secure_aggregation.client import Client
from research.exchange.secure_aggregation.keys import Identity
from research.exchange.secure_aggregation.messages import decode, encode
from research.exchange.secure_aggregation.server import STAGES, Server
from research.exchange.secure_aggregation.settings import Round

NEVER = len(STAGES)


@dataclass
class Outcome:
    """What a round came to."""

    total: np.ndarray  # uint32 [size]
    survivors: tuple[int, ...]  # whose values are in it
    sent: dict[int, list[int]] = field(default_factory=dict)
    """Bytes that each client sent, a stage."""
    received: dict[int, list[int]] = field(default_factory=dict)
    """Bytes that each client was sent, a stage."""
    client_seconds: dict[int, float] = field(default_factory=dict)
    """CPU seconds of each client."""
    server_seconds: float = 0.0
    """CPU seconds of the server."""


def simulate(
    round: Round,
    identities: Sequence[Identity],
    values: np.ndarray,
    drops: Mapping[int, int] | None = None,
) -> Outcome:
    """The sum of `values` (uint32 [clients, size]) over those that stayed.

    `drops` says from which stage on (0 to 4) a client says nothing more.

    Raises TooFew where too many did.
    """
    drops = drops or {}
    server = Server(round)
    clients = {
        number: Client(round, number, identity, values[number])
        for number, identity in enumerate(identities)
    }
    outcome = Outcome(np.zeros(0, np.uint32), ())
    outcome.sent = {number: [0] * len(STAGES) for number in clients}
    outcome.received = {number: [0] * len(STAGES) for number in clients}
    outcome.client_seconds = dict.fromkeys(clients, 0.0)
    inbox: dict[int, bytes | None] = dict.fromkeys(clients)
    for stage in range(len(STAGES)):
        for number, text in inbox.items():
            if drops.get(number, NEVER) <= stage:
                continue
            answer, seconds = _timed(_answer, clients[number], text)
            outcome.client_seconds[number] += seconds
            outcome.sent[number][stage] = len(answer)
            _, seconds = _timed(_take, server, answer)
            outcome.server_seconds += seconds
        if stage < len(STAGES) - 1:
            inbox, seconds = _timed(_next, server)
            outcome.server_seconds += seconds
            for number, text in inbox.items():
                outcome.received[number][stage + 1] = len(text or b"")
    outcome.total, seconds = _timed(server.result)
    outcome.server_seconds += seconds
    outcome.survivors = server.survivors
    return outcome


def _answer(client: Client, text: bytes | None) -> bytes:
    return encode(client.begin() if text is None else client.receive(decode(text)))


def _take(server: Server, text: bytes) -> None:
    server.receive(decode(text))


def _next(server: Server) -> dict[int, bytes | None]:
    messages = server.advance()
    once = {id(message): encode(message) for message in messages.values()}
    return {number: once[id(message)] for number, message in messages.items()}


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - began
