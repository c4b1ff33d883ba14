"""pFedMe: clients move the server's model towards the best ones in its neighborhood.

Dinh et al. 2020, *Personalized Federated Learning with Moreau Envelopes*, arXiv:2006.08848, Alg. 1.
With every batch client k looks for its own model θ_k near to its copy w_k of the server's, and
moves the copy towards it:

    θ_k ≈ argmin_θ ℓ(θ; batch) + λ/2·‖θ - w_k‖²        by some local steps, from w_k
    w_k ← w_k - η·λ·(w_k - θ_k)                        K times, from w_k = w
    w ← w - β·mean of (w - w_k)

β is the rate of the server's sgd, and the paper's mean counts every client once:
--federated.weighting uniform. (The paper's own code begins each search where the last one ended,
not at w_k.) With one step of rate η' a search, w_k is that of FedAvg with the rate η·λ·η'. Client k
keeps θ_k. It is sent B bytes of parameters and sends B back.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.algorithm import Algorithm, Tree, by_optimizer, moved
from research.learning.federated.client import Client, Descent, Reply


def pfedme(
    server: optax.GradientTransformation, pull: float, share: float, search: int
) -> Algorithm:
    """See the file's head: λ = `pull`, η·λ = `share`, and `search` steps for each θ_k."""

    def client(it: Client) -> Reply:
        def look(i: jax.Array, w: Tree, buffers: Tree) -> Descent:
            def near(gradient: Tree, theta: Tree) -> Tree:
                return jax.tree.map(lambda g, t, w: g + pull * (t - w), gradient, theta, w)

            here = it._replace(buffers=buffers, key=jax.random.fold_in(it.key, i))
            return here.descend(w, near, steps=search, at=lambda _: i)

        def step(i: jax.Array, state: Any) -> Any:
            w, descent = state
            found = look(i, w, descent.buffers)
            w = jax.tree.map(lambda w, t: w - share * (w - t), w, found.parameters)
            sums = jax.tree.map(jnp.add, descent.sums, found.sums)
            return w, found._replace(sums=sums)

        first = Descent(it.own, it.buffers, it.no_sums(it.start))
        w, descent = it.repeat(it.steps, it.most, step, (it.start, first))
        return Reply(descent, moved(it.start, w), own=descent.parameters)

    return Algorithm(
        client,
        by_optimizer(server),
        own=lambda parameters: parameters,
        personal=lambda it: it.own,
    )
