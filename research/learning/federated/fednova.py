"""FedNova: moves are divided by the local steps that made them.

Wang et al. 2020, *Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization*, arXiv:2007.07481, eq. 6 and 7, for plain SGD, where ‖a_k‖₁ = K_k, and with momentum ρ
inside, where

    ‖a_k‖₁ = (K_k - ρ·(1 - ρ^K_k) / (1 - ρ)) / (1 - ρ)
    d_k = (w - w_k) / ‖a_k‖₁
    w ← w - (Σ_k p_k·‖a_k‖₁) · Σ_k p_k·d_k        p_k = n_k / Σ n

So a client that took more steps pulls no harder. (The rate η is inside of w - w_k.) A client is
sent B bytes of parameters, and sends B and a number.
"""

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.algorithm import Algorithm, Replies, Server, by_optimizer, moved
from research.learning.federated.client import Client, Reply


def fednova(server: optax.GradientTransformation, momentum: float = 0.0) -> Algorithm:
    """See the file's head; ρ = `momentum` of the local optimizer."""

    def client(it: Client) -> Reply:
        descent = it.descend(it.start)
        steps = it.steps.astype(jnp.float32)
        length = steps
        if momentum:
            lost = momentum * (1 - momentum**steps) / (1 - momentum)
            length = (steps - lost) / (1 - momentum)
        move = jax.tree.map(lambda d: d / length, moved(it.start, descent.parameters))
        return Reply(descent, move, more=length)

    def serve(state: Server, replies: Replies) -> Server:
        move = jax.tree.map(lambda d: replies.more * d, replies.move)
        return by_optimizer(server)(state, replies._replace(move=move))

    return Algorithm(client, serve)
