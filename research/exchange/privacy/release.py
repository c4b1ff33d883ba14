"""Noise on the sum of clipped updates, and its mean by a number that is not private: two stages.

McMahan, Ramage, Talwar and Zhang 2018, *Learning Differentially Private Recurrent Language Models*,
arXiv:1710.06963, Alg. 1 with w_k = 1 and the estimator f̃_f of §3.2: client k is drawn with
probability q of K, and

    Δ̄ = 1/(q·K) · (Σ_{k drawn} Δ_k · min(1, C / ‖Δ_k‖₂) + N(0, (z·C)²·I))

What is private of a client is whether it is there at all, with all its examples. The ledger of a
run is the state of `noise`.
"""

from typing import Any, NamedTuple

import jax

from research.exchange.privacy import ledger
from research.exchange.privacy.accounting import Event
from research.exchange.privacy.noise import gaussian
from research.exchange.senders import clip
from research.exchange.stages import Round, Stage

Tree = Any


class Release(NamedTuple):
    """What is released of a round."""

    bound: float  # C
    event: Event  # z and q
    expected: float  # q·K

    def stages(self) -> list[Stage]:
        """Clip, add up and noise."""
        return [clip(self.bound), noise(self.bound, self.event)]


def noise(bound: float, event: Event) -> Stage:
    """N(0, (z·C)²) with C = `bound` on a sum, and the entry in the ledger."""

    def apply(total: Tree, state: Tree, round: Round) -> tuple[Tree, Tree]:
        drawn = gaussian(total, round.key)
        deviation = event.noise_multiplier * bound
        noised = jax.tree.map(lambda x, n: x + deviation * n, total, drawn)
        return noised, ledger.after(state, event)

    return Stage(
        "noise",
        "sum",
        "sum",
        apply,
        init=lambda like: ledger.empty(),
        charges=True,
        counts_alike=True,
        least=0,
    )


def expected_mean(expected: float) -> Stage:
    """Of a sum, by the number of updates that are `expected` in it."""

    def divide(total: Tree, state: Tree, round: Round) -> tuple[Tree, Tree]:
        return jax.tree.map(lambda x: x / expected, total), state

    return Stage("mean", "sum", "result", divide)
