"""q-FedAvg: clients whose loss is high weigh more.

Li et al. 2020, *Fair Resource Allocation in Federated Learning*, arXiv:1905.10497, Alg. 2, for the
objective Σ_k p_k/(q+1)·F_k(w)^(q+1). With F_k(w) the loss over all data of client k, L = 1/η, and
w_k as of FedAvg:

    Δw_k = L·(w - w_k)
    Δ_k = F_k(w)^q·Δw_k
    h_k = q·F_k(w)^(q-1)·‖Δw_k‖² + L·F_k(w)^q
    w ← w - Σ_k Δ_k / Σ_k h_k

q = 0 is FedAvg with equal weights. The paper draws clients by their examples and then counts them
alike: --federated.sampling weighted --federated.weighting uniform. A client is sent B bytes of
parameters, and sends B and a number.
"""

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.algorithm import Algorithm, Replies, Server, by_optimizer, moved
from research.learning.federated.client import Client, Reply

LEAST = 1e-10
"""Losses are taken to be no smaller, so that their powers are finite (as in the paper's code)."""


def q_fedavg(server: optax.GradientTransformation, q: float) -> Algorithm:
    """See the file's head; `server` is sgd with rate 1 in the paper."""

    def client(it: Client) -> Reply:
        descent = it.descend(it.start)
        loss = jnp.maximum(it.loss(it.start), LEAST)
        lipschitz = 1 / it.local.rate
        gradient = jax.tree.map(lambda d: lipschitz * d, moved(it.start, descent.parameters))
        squared = optax.tree.norm(gradient, squared=True)
        h = q * loss ** (q - 1) * squared + lipschitz * loss**q
        return Reply(descent, jax.tree.map(lambda g: loss**q * g, gradient), more=h)

    def serve(state: Server, replies: Replies) -> Server:
        move = jax.tree.map(lambda d: d / replies.more, replies.move)
        return by_optimizer(server)(state, replies._replace(move=move))

    return Algorithm(client, serve)
