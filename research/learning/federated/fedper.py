"""FedPer: a shared body, and a head that every client keeps for itself.

Arivazhagan et al. 2019, *Federated Learning with Personalization Layers*, arXiv:1912.00818. Client
k keeps its head h_k, and learns it together with the body φ that the server sends:

    (φ_k, h_k) ← (φ_k, h_k) - η·∇ℓ(φ_k, h_k; batch)        K times, from φ_k = φ
    φ ← Σ_k n_k·φ_k / Σ_k n_k

h_k stays as it was in rounds without k. What is evaluated for all is φ with the head that all began
with, which nobody trains: look at each client's own model. A client is sent the bytes of φ, and
sends as many.
"""

import optax

from research.learning.federated.algorithm import Algorithm, by_optimizer, moved
from research.learning.federated.client import Client, Reply
from research.learning.federated.parts import Part, joined


def fedper(server: optax.GradientTransformation, head: Part, body: Part) -> Algorithm:
    """See the file's head; `head` and `body` are parts of the parameters."""

    def client(it: Client) -> Reply:
        start = body(it.start)
        descent = it.descend(joined(start, it.own))
        move = moved(start, body(descent.parameters))
        return Reply(descent, move, own=head(descent.parameters))

    return with_own_head(Algorithm(client, by_optimizer(server)), head, body)


def with_own_head(algorithm: Algorithm, head: Part, body: Part) -> Algorithm:
    """Of clients whose row of the table is their head."""
    return algorithm._replace(
        own=head,
        personal=lambda it: joined(body(it.start), it.own),
        sent=lambda server: (body(server.parameters), (body(server.parameters), ())),
    )
