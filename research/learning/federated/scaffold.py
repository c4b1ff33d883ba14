"""SCAFFOLD: local steps that are corrected by what a client's own gradients lack.

Karimireddy et al. 2020, *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*,
arXiv:1910.06378, Alg. 1, with option II for the control variates. Client k keeps c_k, the server c:

    w_k ← w_k - η·(∇ℓ(w_k; batch) - c_k + c)        K times, from w_k = w
    c_k⁺ = c_k - c + (w - w_k) / (K·η)
    w ← w + η_g/|S| · Σ_k (w_k - w)
    c ← c + |S|/N · 1/|S| · Σ_k (c_k⁺ - c_k)         S of the N clients took part

The paper's means count every client once: --federated.weighting uniform. The local optimizer is
plain SGD, for which option II is the mean of the gradients that were used. A client is sent 2·B
bytes, and sends 2·B.
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


def scaffold(server: optax.GradientTransformation) -> Algorithm:
    """See the file's head; `server` is the server's optimizer, sgd with rate η_g in the paper."""

    def client(it: Client) -> Reply:
        def corrected(gradient: Tree, parameters: Tree) -> Tree:
            return jax.tree.map(lambda g, own, c: g - own + c, gradient, it.own, it.shared)

        descent = it.descend(it.start, corrected)
        move = moved(it.start, descent.parameters)
        per_step = 1 / (it.steps * it.local.rate)
        own = jax.tree.map(lambda o, c, d: o - c + per_step * d, it.own, it.shared, move)
        return Reply(descent, move, more=jax.tree.map(jnp.subtract, own, it.own), own=own)

    def controlled(server: Server, replies: Replies) -> Tree:
        return jax.tree.map(lambda c, d: c + replies.share * d, server.shared, replies.more)

    def zeros(parameters: Tree) -> Tree:
        return jax.tree.map(jnp.zeros_like, parameters)

    return Algorithm(client, by_optimizer(server, controlled), shared=zeros, own=zeros)
