"""A sum of which nobody sees the summands: Bonawitz et al. 2017, on the graph of Bell et al. 2020.

A `Round` is what all agree on, `Client` and `Server` answer messages with messages, and `simulate`
carries them in one process; none of it opens a socket or a file. `FixedPoint` turns numbers into
the ring of integers modulo 2^32 and back, alike in the protocol and (`fixed_point_spmd`) in a
compiled program. What all this promises to whom is in docs/threat_model.md.
"""

from research.exchange.secure_aggregation.client import Client
from research.exchange.secure_aggregation.errors import (
    BothShares,
    CohortTooSmall,
    DuplicateMessage,
    ForgedKeys,
    ForgedShares,
    MalformedMessage,
    MissingShares,
    NotFinite,
    OutOfRange,
    Refused,
    ReusedKeys,
    RingOverflow,
    SecondUnmasking,
    ThresholdTooHigh,
    ThresholdTooLow,
    TooFew,
    UnknownClient,
    ViewsDiffer,
    WrongRound,
    WrongShares,
    WrongStage,
)
from research.exchange.secure_aggregation.fixed_point import FixedPoint
from research.exchange.secure_aggregation.graph import degree
from research.exchange.secure_aggregation.keys import Identity
from research.exchange.secure_aggregation.messages import decode, encode
from research.exchange.secure_aggregation.server import Server
from research.exchange.secure_aggregation.settings import SMALLEST_COHORT, Round
from research.exchange.secure_aggregation.simulation import Outcome, simulate

__all__ = [
    "SMALLEST_COHORT",
    "BothShares",
    "Client",
    "CohortTooSmall",
    "DuplicateMessage",
    "FixedPoint",
    "ForgedKeys",
    "ForgedShares",
    "Identity",
    "MalformedMessage",
    "MissingShares",
    "NotFinite",
    "OutOfRange",
    "Outcome",
    "Refused",
    "ReusedKeys",
    "RingOverflow",
    "Round",
    "SecondUnmasking",
    "Server",
    "ThresholdTooHigh",
    "ThresholdTooLow",
    "TooFew",
    "UnknownClient",
    "ViewsDiffer",
    "WrongRound",
    "WrongShares",
    "WrongStage",
    "decode",
    "degree",
    "encode",
    "simulate",
]
