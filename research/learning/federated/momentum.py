"""Momentum of each client's own, before a rule that withstands some who send anything.

Karimireddy, He and Jaggi 2021, *Learning from History for Byzantine Robust Optimization*,
arXiv:2012.10333, Alg. 2, whose workers are here clients, and gradients moves:

    m_k ← β·m_k + (1 - β)·Δ_k           every client k of the cohort; m_k = 0 at the start
    Δ̄ = rule(m_1, ..., m_n)

Honest clients' momenta are more alike than their moves, and what a hostile one adds a little of in
every round stands out. The paper's workers are in all rounds: a client that was long away adds what
it once found. B bytes are sent as without; a client keeps as many.
"""

import jax
import jax.numpy as jnp

from research.learning.federated.algorithm import Algorithm, Tree
from research.learning.federated.client import Client, Reply


def with_momentum(algorithm: Algorithm, beta: float) -> Algorithm:
    """An `algorithm` that keeps nothing of clients, with β = `beta`."""

    def client(it: Client) -> Reply:
        reply = algorithm.client(it)
        own = jax.tree.map(lambda m, d: beta * m + (1 - beta) * d, it.own, reply.move)
        return reply._replace(move=own, own=own)

    def zeros(parameters: Tree) -> Tree:
        return jax.tree.map(jnp.zeros_like, parameters)

    return algorithm._replace(client=client, own=zeros)
