"""Differential privacy: what may be seen of one unit, and what that has cost so far.

A `Budget` yields a `Plan` (noise, sampling, places), so that they cannot disagree. `Groups` and
`clipped` bound what one unit does to a sum, `gaussian` hides the rest, and a `Ledger` in the state
counts every release; an `Account` reads it, in ε and δ. An `Audit` bounds ε from below, by guesses.
"""

from research.exchange.privacy.accounting import (
    Budget,
    Event,
    Plan,
    epsilon_of,
    pld_epsilon,
    rdp_epsilon,
)
from research.exchange.privacy.auditing import Audit, audited
from research.exchange.privacy.clipping import (
    Clipped,
    Groups,
    Quantile,
    adapted,
    clipped,
    noise_of_sum,
    scaled_sum,
)
from research.exchange.privacy.correlated import correlated, deviation_of_sums, no_past
from research.exchange.privacy.ledger import Account, Ledger
from research.exchange.privacy.noise import gaussian

__all__ = [
    "Account",
    "Audit",
    "Budget",
    "Clipped",
    "Event",
    "Groups",
    "Ledger",
    "Plan",
    "Quantile",
    "adapted",
    "audited",
    "clipped",
    "correlated",
    "deviation_of_sums",
    "epsilon_of",
    "gaussian",
    "no_past",
    "noise_of_sum",
    "pld_epsilon",
    "rdp_epsilon",
    "scaled_sum",
]
