"""Ditto: beside the server's model, every client has one of its own, held near to it.

Li et al. 2021, *Ditto: Fair and Robust Federated Learning Through Personalization*,
arXiv:2012.04221. The server's model w is FedAvg's, whatever λ. Client k also keeps v_k, and in its
rounds takes as many steps with it:

    v_k ← v_k - η·(∇ℓ(v_k; batch) + λ·(v_k - w))        K times, from the v_k of before

λ = 0 is learning alone, and a large λ the server's model. A client is sent B bytes of parameters
and sends B back; v_k stays where it is.
"""

import jax
import optax

from research.learning.federated.algorithm import Algorithm, Tree, by_optimizer, moved
from research.learning.federated.client import Client, Reply


def ditto(server: optax.GradientTransformation, pull: float) -> Algorithm:
    """See the file's head: λ = `pull`."""

    def client(it: Client) -> Reply:
        def near(gradient: Tree, v: Tree) -> Tree:
            return jax.tree.map(lambda g, v, w: g + pull * (v - w), gradient, v, it.start)

        descent = it.descend(it.start)
        own = it.descend(it.own, near)
        return Reply(descent, moved(it.start, descent.parameters), own=own.parameters)

    return Algorithm(
        client,
        by_optimizer(server),
        own=lambda parameters: parameters,
        personal=lambda it: it.own,
    )
