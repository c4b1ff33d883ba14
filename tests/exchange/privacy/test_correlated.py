"""Correlated noise: its matrix, what one unit may do to it, and what that costs."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy.stats import norm

from research.exchange.privacy import (
    Budget,
    Event,
    correlated,
    deviation_of_sums,
    epsilon_of,
    no_past,
)
from research.exchange.privacy.correlated import coefficients

STEPS = 9


def matrix(bands: int) -> np.ndarray:
    """C by its definition."""
    c = np.array([math.comb(2 * i, i) / 4**i for i in range(bands)])
    c /= np.sqrt((c**2).sum())
    return np.array([[c[t - s] if 0 <= t - s < bands else 0.0 for s in range(STEPS)]
                     for t in range(STEPS)])  # fmt: skip


@pytest.mark.parametrize("bands", [1, 2, 4, STEPS])
def test_noise_is_the_inverse_of_the_matrix_times_what_is_drawn(bands: int) -> None:
    """Column by column: at step t the unit vector t is drawn."""
    drawn = {"a": np.eye(STEPS, dtype=np.float32), "b": 2 * np.eye(STEPS, dtype=np.float32)}
    past = no_past({name: leaf[0] for name, leaf in drawn.items()}, bands)
    step = jax.jit(correlated, static_argnums=2)
    made = []
    for t in range(STEPS):
        y, past = step({name: leaf[t] for name, leaf in drawn.items()}, past, bands)
        made.append(y)
    inverse = np.linalg.inv(matrix(bands))
    np.testing.assert_allclose([y["a"] for y in made], inverse, atol=1e-5)
    np.testing.assert_allclose([y["b"] for y in made], 2 * inverse, atol=1e-5)
    assert len(jax.tree.leaves(past)) == (2 if bands > 1 else 0)


@pytest.mark.parametrize("bands", [1, 3, STEPS])
def test_the_deviation_of_sums_is_that_of_the_rows_of_the_product(bands: int) -> None:
    """‖A·C⁻¹‖_F/√T, with the matrix A of all prefix sums (Denisov et al. 2022, their error)."""
    product = np.tri(STEPS) @ np.linalg.inv(matrix(bands))
    expected = np.linalg.norm(product) / STEPS**0.5
    assert deviation_of_sums(STEPS, bands) == pytest.approx(expected)
    if bands == 1:
        assert expected == pytest.approx(((STEPS + 1) / 2) ** 0.5)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_the_sensitivity_is_the_root_of_the_passes_by_brute_force(bands: int) -> None:
    """Over all times at least `bands` steps apart and all signs; with less between, it is more."""

    def worst(apart: int, times: int) -> float:
        found = 0.0
        for chosen in itertools.combinations(range(STEPS), times):
            if any(b - a < apart for a, b in itertools.pairwise(chosen)):
                continue
            for signs in itertools.product([1, -1], repeat=times):
                found = max(found, float(np.linalg.norm(matrix(bands)[:, chosen] @ signs)))
        return found

    assert np.linalg.norm(coefficients(bands)) == pytest.approx(1)
    np.testing.assert_allclose(matrix(bands)[:bands, 0], coefficients(bands))
    for times in range(1, -(-STEPS // bands) + 1):
        if (times - 1) * bands >= STEPS:
            continue
        # The columns of the last steps are cut off.
        assert 0.9 * times**0.5 <= worst(bands, times) <= times**0.5 + 1e-12
    if bands > 1:
        assert worst(bands - 1, 2) > 2**0.5 + 0.1


def test_it_is_closer_in_prefix_sums_than_independent_noise_of_the_same_price() -> None:
    errors = [np.linalg.norm(np.tril(np.ones((STEPS, STEPS))) @ np.linalg.inv(matrix(bands)))
              for bands in (1, 2, 4, STEPS)]  # fmt: skip
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.85 * errors[0]


@pytest.mark.parametrize(("steps", "passes"), [(1, 1), (10, 1), (11, 2), (95, 10)])
def test_passes_cost_what_one_gaussian_costs(steps: int, passes: int) -> None:
    """δ(ε) = Φ(μ/2 - ε/μ) - e^ε·Φ(-μ/2 - ε/μ) with μ = √k/z (Balle and Wang 2018, Thm. 8)."""
    noise = 3.0
    epsilon = epsilon_of([(Event(noise, 0.1, 10), steps)], 1e-5)
    mu = passes**0.5 / noise
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=0.01)


def test_a_budget_in_turn_is_spent() -> None:
    budget = Budget(4.0, 1e-4, "example")
    plan = budget.plan(1437, 144, 45, in_turn=True)
    assert plan.event.groups == 10 and plan.expected == pytest.approx(143.7)
    assert 0.97 * 4 < epsilon_of([(plan.event, 45)], 1e-4) <= 4
    assert epsilon_of([(plan.event, 51)], 1e-4) > 4
    again = budget.plan(1437, 144, 0, plan.event.noise_multiplier, in_turn=True)
    assert again == plan
