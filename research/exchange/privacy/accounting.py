"""What steps with noise cost: ε and δ of everything that was released, and the noise for a budget.

A step adds up one clipped vector (at most C long) of each unit that was drawn, and noise:

    s = Σ_{i drawn} clip_C(g_i) + N(0, (z·C)²)         z: the noise multiplier
    (ε, δ):  P[M(D) ∈ S] <= e^ε·P[M(D') ∈ S] + δ       for all D, D' that differ by one unit

D' is D with one unit (example, or client) added or removed. A unit is drawn with probability q in
every step, independently of all else (Poisson). Two accountants of Google's `dp-accounting` say
what T steps cost together:

- RDP (Abadi et al. 2016, arXiv:1607.00133, §3.2, moments; Mironov et al. 2019, arXiv:1908.10530)
  is quick and never less than the truth: it says near which noise a budget is kept.
- PLD (privacy loss distributions; Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022,
  arXiv:2207.04380) is tight: it has the last word on the noise, and is what is reported. It rounds
  upwards, never down.

A unit that comes in turn, once in so many steps (`.correlated`), costs a Gaussian release (q = 1) a
pass: ⌈T / groups⌉ of them. Batches have a finite number of
places (`research.data.poisson`): a step has more with probability TAIL, and then another
distribution; (1 + e^ε)·T·TAIL of δ is put aside for that, at most a thousandth of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from research.data.poisson import TAIL, places_for
from research.errors import UserError

Unit = Literal["example", "client"]

RESERVED = 1e-3
"""The share of δ that is put aside for batches that overflow."""
EXACT, QUICK = 1e-4, 1e-3
"""Steps of the grid of privacy losses: both round upwards, the coarser one by more."""
LARGEST_NOISE = 1e6
ORDERS = (*range(2, 129), 160, 192, 256, 384, 512, 768, 1024)
"""Of Rényi divergences: whole ones, for which there is a finite sum."""


class Event(NamedTuple):
    """What one step releases. All are numbers of float32, as a checkpoint keeps them."""

    noise_multiplier: float  # z: the deviation of the noise, in units of the clipping bound
    sampling_probability: float  # q: that a unit takes part
    groups: int = 0  # it takes part in turn, once in so many steps (0: by a draw)


Spent = Sequence[tuple[Event, int]]
"""Events, and how often each happened."""


class Plan(NamedTuple):
    """What a budget buys."""

    event: Event  # of every step
    expected: float  # q·N: units of a mean step, and the denominator of every mean
    most: int  # units that a step has places for


@dataclass(frozen=True)
class Budget:
    """ε at δ, for what one `unit` is."""

    epsilon: float
    delta: float
    unit: Unit

    def plan(
        self,
        units: int,
        expected: int,
        steps: int,
        noise_multiplier: float | None = None,
        in_turn: bool = False,
    ) -> Plan:
        """The plan of `steps` steps that draw `expected` of `units` in the mean, or take them in
        turn: with the least noise that the budget allows, or with a given one.

        Raises UserError for a budget that means nothing, or that no noise meets.
        """
        if self.delta >= 1 / units:
            raise UserError(
                f"--privacy.delta {self.delta:g} is not below 1 / {units:,} {self.unit}s: to "
                f"publish one of them whole would be as private; use {0.1 / units:.0e} or less"
            )
        if not 1 <= expected <= units:
            raise UserError(
                f"a mean step cannot have {expected:,} of {units:,} {self.unit}s: use 1 to "
                f"{units:,}"
            )
        groups = round(units / expected) if in_turn else 0
        probability = float(np.float32(1 / groups if groups else expected / units))
        if noise_multiplier is None:
            noise_multiplier = self._noise(probability, groups, max(steps, 1))
        event = Event(_up(noise_multiplier), probability, groups)
        return Plan(event, probability * units, places_for(units, probability))

    def _noise(self, probability: float, groups: int, steps: int) -> float:
        def by_rdp(noise: float) -> float:
            spent = [(Event(noise, probability, groups), steps)]
            return rdp_epsilon(spent, self.delta * (1 - RESERVED))

        def by_pld(noise: float) -> float:
            return epsilon_of([(Event(noise, probability, groups), steps)], self.delta, QUICK)

        least, most = 0.0, 1.0
        while by_rdp(most) > self.epsilon:
            least, most = most, 2 * most
            if most > LARGEST_NOISE:
                raise UserError(
                    f"no noise keeps {steps:,} steps below ε = {self.epsilon:g} at δ = "
                    f"{self.delta:g}: use a larger --privacy.epsilon"
                )
        enough = _least(by_rdp, self.epsilon, max(least, 0.05), most, 1e-2)
        # By RDP it is enough; the truth may be a good deal below, where steps are few.
        less = enough
        while less > 0.05 and by_pld(less) <= self.epsilon:
            enough, less = less, 0.9 * less
        return _least(by_pld, self.epsilon, less, enough, 1e-3)


def epsilon_of(spent: Spent, delta: float, grid: float = EXACT) -> float:
    """ε at `delta` of all that was `spent`, batches that may overflow included; infinite where they
    cannot be."""
    epsilon = pld_epsilon(spent, delta * (1 - RESERVED), grid)
    steps = sum(count for _, count in spent)
    overflow = (1 + math.exp(min(epsilon, 700.0))) * steps * TAIL
    return epsilon if overflow <= RESERVED * delta else math.inf


def releases(spent: Spent) -> Spent:
    """What was `spent`, with a release of all units for every pass, begun or ended, of those that
    come in turn."""
    return [
        (Event(event.noise_multiplier, 1.0), -(-count // event.groups))
        if event.groups
        else (event, count)
        for event, count in spent
    ]


def rdp_epsilon(spent: Spent, delta: float) -> float:
    """ε at `delta` by Rényi divergences, for units added or removed."""
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(ORDERS)
    for event, count in releases(spent):
        accountant.compose(_described(event), count)
    return float(accountant.get_epsilon(delta))


def pld_epsilon(spent: Spent, delta: float, grid: float = EXACT) -> float:
    """ε at `delta` by privacy loss distributions on a `grid`, for units added or removed."""
    kinds = [(event, count) for event, count in releases(spent) if count > 0]
    if not kinds:
        return 0.0
    total = None
    for event, count in kinds:
        part = _losses(event, grid).self_compose(count)
        total = part if total is None else total.compose(part)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _losses(event: Event, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        event.noise_multiplier,
        sampling_prob=event.sampling_probability,
        value_discretization_interval=grid,
        use_connect_dots=True,
    )


def _least(
    costs: Callable[[float], float], budget: float, least: float, most: float, tolerance: float
) -> float:
    """The least noise between `least` and `most`, which is enough, that `costs` at most `budget`;
    up to a share of `tolerance` above it."""
    while most - least > tolerance * most:
        middle = (least + most) / 2
        least, most = (least, middle) if costs(middle) <= budget else (middle, most)
    return most


def _described(event: Event) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    return dp_accounting.PoissonSampledDpEvent(event.sampling_probability, gaussian)


def _up(number: float) -> float:
    """The next number of float32 that is not below it."""
    rounded = np.float32(number)
    enough = float(rounded) >= number  # as float64: NumPy would compare what it has rounded
    return float(rounded if enough else np.nextafter(rounded, np.float32(np.inf)))
