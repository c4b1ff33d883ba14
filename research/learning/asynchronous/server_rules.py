"""What a parameter server does with a gradient that comes late.

A worker fetched w_t; its gradient g = ∇ℓ(w_t) arrives when the server has w_{t+τ}, after τ updates
by others: its staleness. A rule changes the gradient before the optimizer, or the update after it:

    g'        = on_gradient(g, w_t, w_{t+τ}, τ)
    w_{t+τ+1} = w_{t+τ} + on_update(update(g'))        by any optax optimizer

All are pure functions of what arrives and what the server has, and know neither workers nor time:
`served` may be called by a simulation, or by a process that a real gradient has reached. With B
bytes of parameters a worker sends B for a gradient (hogwild: the entries that are written) and is
sent B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Tree = Any


class Arrival(NamedTuple):
    """A gradient at the server."""

    gradient: Tree  # g
    fetched: Tree  # w_t: where it was taken
    staleness: jax.Array  # [] int32: τ
    key: jax.Array  # of this update, for what a rule draws


class Server(NamedTuple):
    """What a server has."""

    parameters: Tree  # w_{t+τ}
    optimizer: Tree  # optax's state
    rule: Tree  # the rule's


def _as_it_is(arrival: Arrival, parameters: Tree, state: Tree) -> tuple[Tree, Tree]:
    return arrival.gradient, state


class ServerRule(NamedTuple):
    """One way to use gradients that are late."""

    init: Callable[[Tree], Tree] = lambda parameters: ()
    """`init(parameters)`: its state at the start."""
    on_gradient: Callable[[Arrival, Tree, Tree], tuple[Tree, Tree]] = _as_it_is
    """`on_gradient(arrival, parameters, state)`: what the optimizer gets, and the state."""
    on_update: Callable[[Tree, Arrival], Tree] = lambda updates, arrival: updates
    """`on_update(updates, arrival)`: what is added to the parameters."""
    share: float = 1.0
    """Of a gradient's entries, those that a worker sends."""

    def bytes_sent(self, size: int) -> int:
        """For one update, of parameters of `size` bytes: a gradient up, and parameters down."""
        return round((1 + self.share) * size)


def served(
    rule: ServerRule,
    optimizer: optax.GradientTransformation,
    server: Server,
    arrival: Arrival,
) -> tuple[Server, Tree]:
    """The server after one gradient, and the gradient as the rule gave it to the optimizer."""
    gradient, state = rule.on_gradient(arrival, server.parameters, server.rule)
    updates, inside = optimizer.update(gradient, server.optimizer, server.parameters)
    updates = rule.on_update(updates, arrival)
    return Server(optax.apply_updates(server.parameters, updates), inside, state), gradient


def plain() -> ServerRule:
    """Asynchronous SGD (Dean et al. 2012, *Large Scale Distributed Deep Networks*, NIPS):

    w_{t+τ+1} = w_{t+τ} - η·g
    """
    return ServerRule()


def staleness_aware() -> ServerRule:
    """Zhang et al. 2016, *Staleness-aware Async-SGD for Distributed Deep Learning*,
    arXiv:1511.05950, §2.4, with an update for every gradient (their λ-softsync): the learning rate
    is divided by the staleness,

    w_{t+τ+1} = w_{t+τ} - η/τ·g           (η where τ = 0)

    With an optimizer that keeps averages, the whole update is divided, as the rate would be.
    """

    def slower(updates: Tree, arrival: Arrival) -> Tree:
        divisor = jnp.maximum(arrival.staleness, 1)
        return jax.tree.map(lambda u: u / divisor.astype(u.dtype), updates)

    return ServerRule(on_update=slower)


def dc_asgd(strength: float, decay: float | None = None, epsilon: float = 1e-7) -> ServerRule:
    """Zheng et al. 2017, *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    arXiv:1609.08326, Alg. 2: the gradient at w_{t+τ} by a Taylor expansion around w_t, with g⊙g for
    the diagonal of the Hessian,

    g' = g + λ·g⊙g⊙(w_{t+τ} - w_t)        λ = `strength`

    and in the adaptive form (DC-ASGD-a), with m = `decay`,

    s ← m·s + (1 - m)·g⊙g
    λ = `strength` / √(s + ε)

    There is one s, of all gradients as they come; the authors' code, whose ε this is, keeps one for
    every worker.
    """

    def init(parameters: Tree) -> Tree:
        return () if decay is None else jax.tree.map(jnp.zeros_like, parameters)

    def compensate(arrival: Arrival, parameters: Tree, state: Tree) -> tuple[Tree, Tree]:
        if decay is None:
            factors = jax.tree.map(lambda g: strength, arrival.gradient)
        else:
            state = jax.tree.map(
                lambda s, g: decay * s + (1 - decay) * g * g, state, arrival.gradient
            )
            factors = jax.tree.map(lambda s: strength / jnp.sqrt(s + epsilon), state)
        gradient = jax.tree.map(
            lambda g, factor, w, fetched: g + factor * g * g * (w - fetched),
            arrival.gradient,
            factors,
            parameters,
            arrival.fetched,
        )
        return gradient, state

    return ServerRule(init, compensate)


def hogwild(share: float) -> ServerRule:
    """Niu et al. 2011, *HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient
    Descent*, arXiv:1106.5730: an update writes the entries that its examples touch, and no others,

    w_v ← w_v - η·g_v                 where g_v ≠ 0

    As dense models touch all, a random share ρ = `share` of those entries is written, and g_v / ρ
    in the place of g_v keeps the step what it is in the mean. The optimizer sees zeros elsewhere,
    and what it would do there is left out. Which entries, a key says that both sides have, so that
    no places are sent.

    The paper's processors share memory and overwrite each other; here an update is whole, and what
    remains of it is that writes are sparse and gradients late.
    """

    def masks(arrival: Arrival) -> Tree:
        leaves, structure = jax.tree.flatten(arrival.gradient)
        drawn = []
        for number, g in enumerate(leaves):
            mask = g != 0
            if share < 1:
                key = jax.random.fold_in(arrival.key, number)
                mask &= jax.random.bernoulli(key, share, g.shape)
            drawn.append(mask)
        return jax.tree.unflatten(structure, drawn)

    def thin(arrival: Arrival, parameters: Tree, state: Tree) -> tuple[Tree, Tree]:
        gradient = jax.tree.map(
            lambda g, mask: jnp.where(mask, g / share, 0), arrival.gradient, masks(arrival)
        )
        return gradient, state

    def only_there(updates: Tree, arrival: Arrival) -> Tree:
        return jax.tree.map(lambda u, mask: jnp.where(mask, u, 0), updates, masks(arrival))

    return ServerRule(on_gradient=thin, on_update=only_there, share=share)
