"""What a client has of its own, on examples that it has not learned from."""

from collections.abc import Callable
from typing import Any

import jax

from research.learning.federated.client import Client
from research.learning.gradients import Batch, Tree
from research.learning.objective import Totals


def personal(
    it: Client,
    own: Callable[[Client], Tree] | None,
    fine_tuning: int,
    held: Batch,
    pieces: jax.Array,
) -> Totals:
    """Totals over the first so many `pieces` of `held` [most pieces, piece, ...], by the client's
    `own` parameters (None: the server's) after `fine_tuning` steps more, one by each of its
    batches, and then again from the first on.

    So every client may be evaluated by a model that it has adapted, as in Yu et al. 2020,
    *Salvaging Federated Learning by Local Adaptation*, arXiv:2002.04758.
    """
    parameters = it.start if own is None else own(it)
    if fine_tuning:
        again: Any = it.descend(parameters, steps=fine_tuning, at=lambda i: i % it.steps)
        parameters, it = again.parameters, it._replace(buffers=again.buffers)
    return it.totals(parameters, held, pieces)
