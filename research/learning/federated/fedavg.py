"""FedAvg, and FedProx, which keeps clients near where they began.

McMahan et al. 2017, *Communication-Efficient Learning of Deep Networks from Decentralized Data*,
arXiv:1602.05629, Alg. 1. Client k with n_k examples goes through them E times in batches of B:

    w_k ← w_k - η·∇ℓ(w_k; batch)        from w_k = w, K_k = E·⌈n_k / B⌉ times
    w ← Σ_k n_k·w_k / Σ_k n_k           over the cohort

FedSGD is E = 1 with B = n_k: one step by all of a client's examples.

Li et al. 2020, *Federated Optimization in Heterogeneous Networks*, arXiv:1812.06127, Alg. 2: each
local step is by the gradient of

    ℓ(w_k) + μ/2·‖w_k - w‖²

and clients may stop early; with μ = 0 and none who does, it is FedAvg. The server's step is any
optimizer's (see `by_optimizer`). A client is sent B bytes of parameters and sends B back.
"""

import jax
import optax

from research.learning.federated.algorithm import Algorithm, Tree, by_optimizer, moved
from research.learning.federated.client import Client, Reply


def fedavg(server: optax.GradientTransformation) -> Algorithm:
    """See the file's head; `server` is the server's optimizer."""
    return fedprox(server, 0.0)


def fedprox(server: optax.GradientTransformation, mu: float) -> Algorithm:
    """See the file's head: μ = `mu`."""

    def client(it: Client) -> Reply:
        def near(gradient: Tree, parameters: Tree) -> Tree:
            if not mu:
                return gradient
            return jax.tree.map(
                lambda g, w, start: g + mu * (w - start), gradient, parameters, it.start
            )

        descent = it.descend(it.start, near)
        return Reply(descent, moved(it.start, descent.parameters))

    return Algorithm(client, by_optimizer(server))
