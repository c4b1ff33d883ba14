"""A federated algorithm: what a client does alone with its data, and the server with the replies.

    Δ_k, ... = client(w, shared, own_k; data of k)        every client k of the cohort, alone
    Δ̄ = Σ_k p_k·Δ_k / Σ_k p_k                             p_k = n_k, its examples, or 1
    w, shared = serve(w, shared, Δ̄, ...)

Both are pure functions of one client, and of the server. Where clients are computed, how many of
them at once, and who drops out is for `Federated`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.client import Client, Reply
from research.learning.federated.parts import filled

Tree = Any


class Server(NamedTuple):
    """What the server keeps from round to round."""

    parameters: Tree
    shared: Tree  # what else it sends to all clients; () for nothing
    optimizer: Tree  # optax's state


class Replies(NamedTuple):
    """The means over the clients of a round that answered."""

    move: Tree
    more: Tree
    share: jax.Array  # [] float32: of the whole population, how many those are


def _like_the_server(server: Server) -> tuple[Tree, Tree]:
    """The parameters and what is shared down; a move, and as much besides as is shared, up."""
    both = (server.parameters, server.shared)
    return both, both


class Algorithm(NamedTuple):
    """One federated algorithm."""

    client: Callable[[Client], Reply]
    serve: Callable[[Server, Replies], Server]
    shared: Callable[[Tree], Tree] = lambda parameters: ()
    """`shared(parameters)`: what the server sends besides, at the start."""
    own: Callable[[Tree], Tree] = lambda parameters: ()
    """`own(parameters)`: a client's row of the table of clients, at the start."""
    personal: Callable[[Client], Tree] | None = None
    """`personal(client)`: the parameters that suit a client best; None: the server's, as for
    all."""
    sent: Callable[[Server], tuple[Tree, Tree]] = _like_the_server
    """`sent(server)`: trees as large as what a client is sent, and as what it sends; this one like
    (move, more), if the aggregation may be more than a mean."""
    clusters: int | None = None
    """Models of the server's, whose parameters are [clusters, ...] each; None: one, without that
    axis."""


def by_optimizer(
    optimizer: optax.GradientTransformation,
    serve_more: Callable[[Server, Replies], Tree] = lambda server, replies: server.shared,
) -> Callable[[Server, Replies], Server]:
    """Reddi et al. 2021, *Adaptive Federated Optimization*, arXiv:2003.00295, Alg. 1: the mean move
    is a gradient for any optimizer of the server's.

    w ← w + update(Δ̄)        with Δ = start - end

    sgd with rate 1 is averaging; with momentum FedAvgM, and adam, yogi and adagrad are FedAdam,
    FedYogi and FedAdagrad. `serve_more` gives what else is sent to all from now on. What no move is
    of has a gradient of zero.
    """

    def serve(server: Server, replies: Replies) -> Server:
        gradient = filled(replies.move, jax.tree.map(jnp.zeros_like, server.parameters))
        updates, inside = optimizer.update(gradient, server.optimizer, server.parameters)
        parameters = optax.apply_updates(server.parameters, updates)
        return Server(parameters, serve_more(server, replies), inside)

    return serve


def moved(start: Tree, end: Tree) -> Tree:
    """Δ = start - end."""
    return jax.tree.map(jnp.subtract, start, end)
