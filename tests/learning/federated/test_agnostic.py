"""Agnostic federated learning against its equations in NumPy, and what it is for."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from research.learning import FederatedConfig
from research.learning.federated.agnostic import on_simplex
from tests.learning.federated.test_federated import (
    CLIENTS,
    CLOSE,
    CONFIG,
    LOCAL,
    RATE,
    Reference,
    cohorts,
    flat,
    run,
)
from tests.learning.federated.test_personalization import AGNOSTIC, data, loss


def nearest_mixture(vector: np.ndarray) -> np.ndarray:
    """By bisection of what is taken from every entry."""
    low, high = vector.min() - 1, vector.max()
    for _ in range(100):
        middle = (low + high) / 2
        if np.maximum(vector - middle, 0).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(vector - low, 0)


def by_hand(config: FederatedConfig, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """w and λ after so many rounds."""
    it, reader = Reference(config), cohorts(config)
    w, mixture = it.start(), np.full(CLIENTS, 1 / CLIENTS)
    for number in range(rounds):
        round = reader.rows(number, range(config.cohort))
        ends, losses = [], np.zeros(CLIENTS)
        for row, client in enumerate(round["client"]):
            end = w.copy()
            for batch in it.batches(round, row):
                end = end - RATE * it.gradient(end, *batch)
            ends.append(end)
            losses[client] = loss(w, *data(client))
        own = mixture[round["client"]]
        if config.weighting == "examples":
            own = own * round["examples"]
        w = own @ np.array(ends) / own.sum()
        mixture = nearest_mixture(mixture + config.ascent * CLIENTS / config.cohort * losses)
    return w, mixture


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_it_follows_its_paper(weighting: str) -> None:
    config = replace(AGNOSTIC, weighting=weighting)
    state, _ = run(config, rounds=5)
    w, mixture = by_hand(config, rounds=5)
    assert (mixture == 0).any() and mixture.max() > 0.3  # the projection has cut
    np.testing.assert_allclose(state.shared, mixture, **CLOSE)
    np.testing.assert_allclose(flat(state.parameters), w, **CLOSE)


def test_without_ascent_it_is_fedavg() -> None:
    state, _ = run(replace(AGNOSTIC, ascent=0.0))
    expected, _ = run(replace(CONFIG, weighting="uniform"))
    np.testing.assert_allclose(flat(state.parameters), flat(expected.parameters), **CLOSE)


def test_the_worst_client_is_served_better() -> None:
    worst = []
    for ascent in (0.0, 0.02):
        config = replace(AGNOSTIC, ascent=ascent, cohort=CLIENTS)
        state, _ = run(config, rounds=150, local=replace(LOCAL, learning_rate=0.05))
        worst.append(max(loss(flat(state.parameters), *data(c)) for c in range(CLIENTS)))
    assert worst[1] < worst[0] - 0.02


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_vector_is_projected_on_the_simplex(scale: float) -> None:
    vector = scale * np.random.default_rng(2).normal(size=50).astype(np.float32)
    mixture = np.asarray(on_simplex(jnp.asarray(vector)))
    np.testing.assert_allclose(mixture, nearest_mixture(vector), atol=1e-5 * max(1.0, scale))
    np.testing.assert_allclose(on_simplex(jnp.asarray(mixture)), mixture, atol=1e-6 * max(1, scale))
