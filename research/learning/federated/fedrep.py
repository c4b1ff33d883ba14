"""FedRep: clients fit their own head to the body they are sent, then the body to that head.

Collins et al. 2021, *Exploiting Shared Representations for Personalized Federated Learning*,
arXiv:2102.07078, Alg. 1. Client k keeps its head h_k, is sent the body φ, and

    h_k ← h_k - η·∇_h ℓ(φ, h_k; batch)        E epochs, with the body as it is
    φ_k ← φ_k - η·∇_φ ℓ(φ_k, h_k; batch)      one epoch more, from φ_k = φ, with that head
    φ ← mean of φ_k

The paper's mean counts every client once: --federated.weighting uniform. As for FedPer, the model
that all share has a head that nobody trains. A client is sent the bytes of φ, and sends as many.
"""

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.algorithm import Algorithm, by_optimizer, moved
from research.learning.federated.client import Client, Reply
from research.learning.federated.fedper import with_own_head
from research.learning.federated.parts import Part


def fedrep(server: optax.GradientTransformation, head: Part, body: Part) -> Algorithm:
    """See the file's head; `head` and `body` are parts of the parameters."""

    def client(it: Client) -> Reply:
        start = body(it.start)
        first = it.descend(it.own, held=start)
        after = it._replace(buffers=first.buffers)
        second = after.descend(start, held=first.parameters, steps=it.epoch)
        sums = jax.tree.map(jnp.add, first.sums, second.sums)
        move = moved(start, second.parameters)
        return Reply(second._replace(sums=sums), move, own=first.parameters)

    return with_own_head(Algorithm(client, by_optimizer(server)), head, body)
