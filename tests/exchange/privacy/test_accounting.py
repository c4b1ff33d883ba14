"""What steps cost, by published numbers and by formulas that are computed here anew."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import comb, logsumexp
from scipy.stats import norm

from research.data.poisson import TAIL
from research.errors import UserError
from research.exchange.privacy import Budget, Event, epsilon_of, pld_epsilon, rdp_epsilon
from research.exchange.privacy.accounting import QUICK

MNIST = Event(1.1, 256 / 60_000)


@pytest.mark.parametrize(
    ("event", "steps", "by_rdp", "by_pld"),
    [
        # Abadi et al. 2016, §3.2: q = 0.01, σ = 4, T = 10,000 (their moments: 1.26).
        (Event(4.0, 0.01), 10_000, 1.035, 0.947),
        # TensorFlow Privacy's tutorial: 60 epochs of MNIST (its RDP accountant: 2.60).
        (MNIST, 60 * 60_000 // 256, 2.597, 2.382),
    ],
)
def test_epsilons_of_the_literature(event: Event, steps: int, by_rdp: float, by_pld: float) -> None:
    assert round(rdp_epsilon([(event, steps)], 1e-5), 3) == by_rdp
    assert round(pld_epsilon([(event, steps)], 1e-5), 3) == by_pld


def test_rdp_is_the_sum_of_mironov_2019() -> None:
    """Theorem 5 for whole orders, and the conversion of Canonne et al. 2020, Prop. 12."""
    event, steps, delta = Event(1.5, 0.02), 300, 1e-5
    z, q, _ = event
    best = math.inf
    for order in range(2, 200):
        k = np.arange(order + 1)
        terms = np.log(comb(order, k)) + (order - k) * math.log(1 - q) + k * math.log(q)
        divergence = logsumexp(terms + (k * k - k) / (2 * z * z)) / (order - 1)
        converted = steps * divergence + math.log1p(-1 / order)
        best = min(best, converted - math.log(delta * order) / (order - 1))
    assert rdp_epsilon([(event, steps)], delta) == pytest.approx(best, rel=1e-6)


def test_pld_is_the_gaussian_of_balle_and_wang() -> None:
    """arXiv:1805.06530, Theorem 8, where all take part: T steps of σ are one of σ / √T."""
    sigma, steps, delta = 8.0, 16, 1e-5
    s = sigma / math.sqrt(steps)

    def excess(epsilon: float) -> float:
        there = norm.cdf(1 / (2 * s) - epsilon * s)
        return there - math.exp(epsilon) * norm.cdf(-1 / (2 * s) - epsilon * s) - delta

    exact = brentq(excess, 0.01, 20)
    measured = pld_epsilon([(Event(sigma, 1.0), steps)], delta)
    assert exact <= measured <= exact * (1 + 1e-3)


def test_kinds_of_steps_add_up() -> None:
    one, other = (Event(1.0, 0.01), 50), (Event(2.0, 0.05), 100)
    both = pld_epsilon([one, other], 1e-5)
    assert max(pld_epsilon([one], 1e-5), pld_epsilon([other], 1e-5)) < both
    assert both < pld_epsilon([one], 5e-6) + pld_epsilon([other], 5e-6)
    halves = [(one[0], 20), (one[0], 30)]
    assert pld_epsilon(halves, 1e-5) == pytest.approx(pld_epsilon([one], 1e-5), rel=1e-3)
    assert pld_epsilon([], 1e-5) == 0


def test_the_coarser_grid_is_never_below() -> None:
    spent = [(MNIST, 5_000)]
    exact, quick = pld_epsilon(spent, 1e-5), pld_epsilon(spent, 1e-5, QUICK)
    assert exact <= quick <= 1.01 * exact


def test_batches_that_overflow_are_paid_for() -> None:
    spent = [(MNIST, 5_000)]
    plain, whole = pld_epsilon(spent, 1e-5), epsilon_of(spent, 1e-5)
    assert plain < whole < 1.001 * plain
    # (1 + e^ε)·T·TAIL of a δ as small as that: nothing can be said.
    assert epsilon_of(spent, 1e3 * TAIL) == math.inf


@pytest.mark.parametrize(("epsilon", "expected"), [(0.5, 256), (8.0, 256), (8.0, 60_000)])
def test_a_plan_spends_its_budget_and_not_more(epsilon: float, expected: int) -> None:
    steps, units = 200, 60_000
    budget = Budget(epsilon, 1e-5, "example")
    plan = budget.plan(units, expected, steps)
    assert 0.97 * epsilon < epsilon_of([(plan.event, steps)], budget.delta) <= epsilon
    less = plan.event._replace(noise_multiplier=0.98 * plan.event.noise_multiplier)
    assert epsilon_of([(less, steps)], budget.delta) > epsilon
    assert plan.expected == pytest.approx(expected, rel=1e-6)
    assert plan.expected <= plan.most <= units
    # What is accounted is what a checkpoint can hold, and what batches are drawn with.
    assert all(float(np.float32(number)) == number for number in plan.event)
    given = budget.plan(units, expected, steps, 1.3).event.noise_multiplier
    assert 1.3 < given < 1.3 + 2e-7  # float32(1.3) is less than 1.3


def test_a_budget_that_cannot_be_is_named() -> None:
    with pytest.raises(UserError, match=r"--privacy.delta 0.001 is not below 1 / 1,437 examples"):
        Budget(8.0, 1e-3, "example").plan(1437, 64, 10)
    with pytest.raises(UserError, match="a mean step cannot have 2,000 of 1,437 examples"):
        Budget(8.0, 1e-4, "example").plan(1437, 2000, 10)
    with pytest.raises(UserError, match="no noise keeps 1,000 steps below ε = 1e-08"):
        Budget(1e-8, 1e-9, "example").plan(1437, 1437, 1000)
