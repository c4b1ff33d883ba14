"""MimeLite: local steps with the server's momentum, which no client changes.

Karimireddy et al. 2020, *Mime: Mimicking Centralized Stochastic Algorithms in Federated Learning*,
arXiv:2008.03606, Alg. 1 without the control variates, with momentum SGD as the base:

    w_k ← w_k - η·((1 - β)·∇ℓ(w_k; batch) + β·m)        K times, from w_k = w
    w ← mean of w_k
    m ← (1 - β)·mean of ∇ℓ_k(w) + β·m                   ∇ℓ_k: over all data of client k

A client is sent 2·B bytes (w and m), and sends 2·B (its move and its gradient at w).
"""

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.algorithm import (
    Algorithm,
    Replies,
    Server,
    Tree,
    by_optimizer,
    moved,
)
from research.learning.federated.client import Client, Reply


def mimelite(server: optax.GradientTransformation, momentum: float = 0.9) -> Algorithm:
    """See the file's head: β = `momentum`; `server` is sgd with rate 1 in the paper."""

    def mixed(gradient: Tree, m: Tree) -> Tree:
        return jax.tree.map(lambda g, m: (1 - momentum) * g + momentum * m, gradient, m)

    def client(it: Client) -> Reply:
        descent = it.descend(it.start, lambda gradient, _: mixed(gradient, it.shared))
        return Reply(descent, moved(it.start, descent.parameters), more=it.gradient(it.start))

    def remembered(server: Server, replies: Replies) -> Tree:
        return mixed(replies.more, server.shared)

    def zeros(parameters: Tree) -> Tree:
        return jax.tree.map(jnp.zeros_like, parameters)

    return Algorithm(client, by_optimizer(server, remembered), shared=zeros)
