"""Workers of their own around a server: processes that come late, die and come back, for real.

`Server` is a state machine without I/O: it hands out leases and takes in what workers push, by the
pure functions of `research.learning.asynchronous`. `ray_engine` runs it and its workers as actors
of Ray. What they do besides (data, files, evaluation) is handed in.
"""

from research.deployment.actors.leases import Deck, InTurn, Lease
from research.deployment.actors.methods import Method, OfGradients, OfMoves, Pushed, method_of
from research.deployment.actors.server import Answer, Server, Taken
from research.deployment.actors.worker import Worker

__all__ = [
    "Answer",
    "Deck",
    "InTurn",
    "Lease",
    "Method",
    "OfGradients",
    "OfMoves",
    "Pushed",
    "Server",
    "Taken",
    "Worker",
    "method_of",
]
