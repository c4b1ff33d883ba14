"""Agnostic federated learning: a model for whatever mixture of the clients comes, even the worst.

Mohri et al. 2019, *Agnostic Federated Learning*, arXiv:1902.00146, for the objective
min_w max_λ Σ_k λ_k·F_k(w) over mixtures λ (λ_k ≥ 0, Σ_k λ_k = 1), with F_k the mean loss over all
data of client k, each client a domain. Stochastic AFL (fig. 3 there) takes one step by w and by λ
in turn; here clients make local steps, as of FedAvg, each beginning at w:

    w ← Σ_k λ_k·w_k / Σ_k λ_k                      over the cohort S of N clients
    λ ← Π(λ + γ·N/|S|·(F_k(w))_k)                  0 for clients that are not in S

Π is the Euclidean projection on the mixtures (Duchi et al. 2008, *Efficient Projections onto the
ℓ1-Ball*, fig. 1), and N/|S| makes of a cohort's losses an unbiased estimate of all. At first all
λ_k are 1/N; γ = 0 is FedAvg. The paper counts clients by λ alone: --federated.weighting uniform. A
client is sent B bytes of parameters and λ_k, and sends B and F_k.
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


def agnostic(server: optax.GradientTransformation, ascent: float, clients: int) -> Algorithm:
    """See the file's head: γ = `ascent`, N = `clients`; `server` is sgd with rate 1 for FedAvg."""

    def client(it: Client) -> Reply:
        descent = it.descend(it.start)
        own = it.shared[it.number]  # λ_k
        here = jnp.zeros(clients).at[it.number].set(1.0)
        move = jax.tree.map(lambda d: own * d, moved(it.start, descent.parameters))
        return Reply(descent, move, more=(own, here, here * it.loss(it.start)))

    def serve(state: Server, replies: Replies) -> Server:
        total, here, losses = replies.more  # means, by whatever clients weigh besides
        move = jax.tree.map(lambda d: jnp.where(total > 0, d / total, 0), replies.move)
        return by_optimizer(server, mixed)(state, replies._replace(move=move, more=(here, losses)))

    def mixed(state: Server, replies: Replies) -> jax.Array:
        here, losses = replies.more
        losses = jnp.where(here > 0, losses / jnp.where(here > 0, here, 1), 0)
        return on_simplex(state.shared + ascent * losses / replies.share)

    def sent(state: Server) -> tuple[Tree, Tree]:
        number = jax.ShapeDtypeStruct((), jnp.float32)
        return (state.parameters, number), (state.parameters, number)

    def mixture(parameters: Tree) -> jax.Array:
        return jnp.full(clients, 1 / clients)

    return Algorithm(client, serve, shared=mixture, sent=sent)


def on_simplex(vector: jax.Array) -> jax.Array:
    """The nearest vector [n] that is nowhere negative and adds up to 1."""
    descending = jnp.sort(vector, descending=True)
    excess = (jnp.cumsum(descending) - 1) / (1 + jnp.arange(vector.size))
    shift = excess[jnp.sum(descending > excess) - 1]
    return jnp.maximum(vector - shift, 0)
