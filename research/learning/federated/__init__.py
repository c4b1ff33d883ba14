"""Federated learning: clients that keep their data, a server, and rounds of a cohort.

`Federated` is the learner, `FederatedConfig` names an `Algorithm` for it. An algorithm is what a
`Client` does alone and what the server does with the `Replies`; each has a short file with its
paper's equations.
"""

from research.learning.federated.algorithm import Algorithm, Replies, Server, by_optimizer
from research.learning.federated.client import Client, Reply
from research.learning.federated.federated import Federated
from research.learning.federated.federated_config import FederatedConfig
from research.learning.federated.private_rounds import check_private_rounds
from research.learning.federated.state import FederatedState, Population

__all__ = [
    "Algorithm",
    "Client",
    "Federated",
    "FederatedConfig",
    "FederatedState",
    "Population",
    "Replies",
    "Reply",
    "Server",
    "by_optimizer",
    "check_private_rounds",
]
