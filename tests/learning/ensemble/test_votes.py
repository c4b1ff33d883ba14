"""PATE's votes: who wins with how much noise, and what a label tells."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from research.exchange.privacy import pld_epsilon
from research.learning.ensemble.votes import noisy_votes, spent


def of_votes(*counts: int) -> jax.Array:
    """Log-probabilities [members, 1, classes] of members who vote so."""
    classes = np.repeat(np.arange(len(counts)), counts)
    return jnp.log(0.9 * np.eye(len(counts))[classes] + 0.01)[:, None]


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), count)


def test_without_noise_the_majority_wins_and_the_frozen_have_no_vote() -> None:
    assert noisy_votes(of_votes(2, 5, 3), 0.0, keys(1)).tolist() == [1]
    frozen = of_votes(2, 5, 3).at[2:7].set(jnp.nan)  # those who were for class 1
    assert noisy_votes(frozen, 0.0, keys(1)).tolist() == [2]


def test_noise_changes_labels_as_often_as_the_normal_distribution_says() -> None:
    """7 against 3 of two classes: the difference of two noises has the deviation σ√2."""
    count, deviation = 4000, 4.0
    log_p = jnp.repeat(of_votes(7, 3), count, axis=1)
    wrong = float(np.mean(np.asarray(noisy_votes(log_p, deviation, keys(count))) == 1))
    wanted = norm.cdf(-4 / (deviation * math.sqrt(2)))
    assert wrong == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / count))


def test_labels_cost_what_gaussian_mechanisms_of_sensitivity_root_2_do() -> None:
    """Together they are one with μ = √(2T)/σ, whose δ is known (Balle and Wang 2018, theorem 8)."""
    deviation, labels, delta = 20.0, 100, 1e-5
    epsilon = pld_epsilon(spent(deviation, labels), delta)
    mu = math.sqrt(2 * labels) / deviation
    exact = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert exact == pytest.approx(delta, rel=0.02) and exact <= delta
