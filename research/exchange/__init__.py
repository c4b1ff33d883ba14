"""What replicas send each other, and how many bytes that is.

An `Exchange` is a pair of pure functions for one tree of one replica, and the messages that it
sends; `chain` joins several. `mean` and `hierarchical_mean` are here. When they are used, and what
a replica does in between, is for `research.learning`.
"""

from research.exchange.average import hierarchical_mean, mean
from research.exchange.exchange import Exchange, Moment, chain
from research.exchange.message import Message, sent
from research.exchange.replicas import Replicas

__all__ = [
    "Exchange",
    "Message",
    "Moment",
    "Replicas",
    "chain",
    "hierarchical_mean",
    "mean",
    "sent",
]
