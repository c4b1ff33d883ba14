"""What replicas send each other, and how many bytes that is.

An `Exchange` is a pair of pure functions for one tree of one replica, and the messages that it
sends; `chain` joins several. `mean` and `hierarchical_mean` average; `two_shot` (with a codec),
`top_k` and `powersgd` do so with fewer bytes; `adasum` adds up; `mix` hears neighbors only. When
they are used, and what a replica does in between, is for `research.learning`.
"""

from research.exchange.adasum import adasum
from research.exchange.average import hierarchical_mean, mean
from research.exchange.exchange import Exchange, Moment, chain
from research.exchange.message import Message, messages_sent, sent
from research.exchange.mixing import mix
from research.exchange.powersgd import powersgd
from research.exchange.replicas import Replicas
from research.exchange.top_k import top_k
from research.exchange.two_shot import two_shot

__all__ = [
    "Exchange",
    "Message",
    "Moment",
    "Replicas",
    "adasum",
    "chain",
    "hierarchical_mean",
    "mean",
    "messages_sent",
    "mix",
    "powersgd",
    "sent",
    "top_k",
    "two_shot",
]
