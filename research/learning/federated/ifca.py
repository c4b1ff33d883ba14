"""IFCA: the server has several models, and every client learns the one that suits it best.

Ghosh et al. 2020, *An Efficient Framework for Clustered Federated Learning*, arXiv:2006.04088,
Alg. 1 with model averaging. With F_k(θ) the loss over all data of client k:

    j(k) = argmin_j F_k(θ_j)
    θ ← θ - η·∇ℓ(θ; batch)                          K times, from θ = θ_j(k): it becomes θ̃_k
    θ_j ← Σ_{k: j(k) = j} n_k·θ̃_k / Σ n_k           or as it was, where no client has chosen it

Models start from different draws; where losses are equal, as with models that all begin at zero,
client k takes the first such one from number k on. What is evaluated for all is the mean of the
models. A client is sent all of them, and sends one and its number.
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


def ifca(server: optax.GradientTransformation, clusters: int) -> Algorithm:
    """See the file's head; the server's parameters are [clusters, ...] each."""

    def chosen(it: Client) -> jax.Array:
        losses = jax.lax.map(it.loss, it.start)  # [clusters]
        order = (it.number + jnp.arange(clusters)) % clusters
        return order[jnp.argmin(losses[order])]

    def suited(it: Client) -> Tree:
        return of(it, chosen(it))

    def of(it: Client, number: jax.Array) -> Tree:
        return jax.tree.map(lambda each: each[number], it.start)

    def client(it: Client) -> Reply:
        best = chosen(it)
        start = of(it, best)
        descent = it.descend(start)
        mine = jax.nn.one_hot(best, clusters)
        move = jax.tree.map(
            lambda d: jnp.tensordot(mine, d, axes=0), moved(start, descent.parameters)
        )
        return Reply(descent, move, more=mine)

    def serve(state: Server, replies: Replies) -> Server:
        def mean(each: jax.Array) -> jax.Array:
            share = replies.more.reshape(-1, *(1,) * (each.ndim - 1))
            return jnp.where(share > 0, each / jnp.where(share > 0, share, 1), 0)

        return by_optimizer(server)(state, replies._replace(move=jax.tree.map(mean, replies.move)))

    def sent(server: Server) -> tuple[Tree, Tree]:
        one = jax.tree.map(
            lambda each: jax.ShapeDtypeStruct(each.shape[1:], each.dtype), server.parameters
        )
        return server.parameters, one

    return Algorithm(client, serve, personal=suited, sent=sent, clusters=clusters)
