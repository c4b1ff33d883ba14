"""FedBuff: nobody waits for the slowest, and the server learns from K clients at a time.

Nguyen et al. 2022, *Federated Learning with Buffered Asynchronous Aggregation*, arXiv:2106.06639,
Alg. 1. At any moment as many clients learn as there are places. Whoever is done sends its move, and
another client takes its place, with the server's parameters of that moment; with every K-th move
the server makes a step:

    Δ_i = w_{t-τ_i} - (what client i made of it)         it began τ_i steps ago
    w_{t+1} = w_t - η_g · 1/K · Σ_i s(τ_i)·Δ_i           s(τ) = 1/√(1 + τ)

K is the cohort, a step of the loop one of the server's, and any optimizer makes it of the mean. Who
is done when is virtual time (`Arrivals`, of places); which clients those are is drawn as for any
round. The paper counts clients alike: --federated.weighting uniform. A client is sent B bytes of
parameters and sends B back.

What places have fetched is the table, [places, ...]. Of a round's K arrivals the last place fetches
what the server makes of them, the others what it had before.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.learning.asynchronous.virtual_time import Arrivals
from research.learning.federated.algorithm import Algorithm, by_optimizer, moved
from research.learning.federated.client import Client, Reply
from research.learning.federated.federated import Federated
from research.learning.federated.state import FederatedState
from research.learning.gradients import Batch, Tree
from research.learning.synchronous import StepMetrics

ORDER = 2**32
"""Tells these draws from others of the same seed."""


def fedbuff(server: optax.GradientTransformation) -> Algorithm:
    """See the file's head; a client's row is what its place has fetched."""

    def client(it: Client) -> Reply:
        descent = it.descend(it.own)
        scale = 1 / jnp.sqrt(1.0 + it.staleness)
        move = jax.tree.map(lambda d: scale * d, moved(it.own, descent.parameters))
        return Reply(descent, move, own=it.own)

    return Algorithm(client, by_optimizer(server), own=lambda parameters: parameters)


class Buffered(Federated):
    """`Federated` in virtual time: rounds of whoever is done first."""

    def __init__(self, *arguments: Any, arrivals: Arrivals, **words: Any):
        """As `Federated`; `arrivals` say which place is done when."""
        self.arrivals = arrivals
        super().__init__(*arguments, **words)

    def events(self, step: int) -> dict[str, np.ndarray]:
        """Of the arrivals in the round after `step` others, in their order, the `place`, its
        `staleness` (steps of the server's), and which of the round's clients that is, by its rank
        among their numbers; [cohort] each."""
        place, staleness = self._turns(step)
        return {"place": place, "staleness": staleness, "rank": self.order(step)}

    def order(self, step: int) -> np.ndarray:
        """int32 [cohort]: the ranks of the clients of a round, as they arrive."""
        key = np.array([self.one.seed % 2**64, ORDER], np.uint64)
        draw = np.random.Generator(np.random.Philox(key=key, counter=step))
        return draw.permutation(self.population.cohort).astype(np.int32)

    def observe(self, step: int, state: FederatedState) -> dict[str, Any]:
        """As of `Federated`; `virtual_seconds`, and of the last round's arrivals the
        `staleness_mean` and `staleness_maximum`."""
        _, staleness = self._turns(step - 1)
        seconds = self.arrivals.before(step * self.population.cohort).seconds
        return {
            **super().observe(step, state),
            "virtual_seconds": float(seconds[-1]),
            "staleness_mean": float(staleness.mean()),
            "staleness_maximum": int(staleness.max()),
        }

    def _turns(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Places and staleness of the arrivals of a round, in their order."""
        cohort = self.population.cohort
        events = self.arrivals.before((step + 1) * cohort)
        numbers = np.arange(step * cohort, (step + 1) * cohort)
        # So many had arrived when the place fetched, and the server had made a step of every K.
        before = numbers - events.staleness[numbers]
        return events.worker[numbers], (step - before // cohort).astype(np.int32)

    def _step(self, state: FederatedState, batch: Batch) -> tuple[FederatedState, StepMetrics]:
        # To each row, wherever its client lies, the arrival that is its client's.
        rank = jnp.argsort(jnp.argsort(batch["client"]))
        arrival = jnp.argsort(batch["rank"])[rank]
        told = {name: batch[name][arrival] for name in ("place", "staleness")}
        return super()._step(state, batch | told | {"rank": arrival})

    @property
    def rows(self) -> int:
        return self.arrivals.workers

    def _kept(self, state: FederatedState, who: Batch) -> Tree:
        current = who["staleness"] == 0  # fetched since the server's last step

        def fetched(table: jax.Array, now: jax.Array) -> jax.Array:
            rows = jnp.take(table, who["place"], axis=0)
            return jnp.where(current.reshape(-1, *(1,) * now.ndim), now, rows)

        return jax.tree.map(fetched, state.clients, state.parameters)

    def _table_after(self, state: FederatedState, who: Batch, rows: Tree, parameters: Tree) -> Tree:
        last = who["place"][jnp.argmax(who["rank"])]
        return jax.tree.map(
            lambda table, old, new: table.at[who["place"]].set(old).at[last].set(new),
            state.clients,
            state.parameters,
            parameters,
        )
