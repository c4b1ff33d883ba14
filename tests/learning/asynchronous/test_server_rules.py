"""What a server does with a late gradient: the papers' equations, by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.learning.asynchronous.server_rules import (
    Arrival,
    Server,
    ServerRule,
    dc_asgd,
    hogwild,
    plain,
    served,
    staleness_aware,
)

G, FETCHED, NOW = np.array([1.0, -2.0, 0.0]), np.array([0.5, 0.5, 0.5]), np.array([1.0, 0.0, 2.0])
SGD = optax.sgd(0.1)


def arrival(gradient: Any = G, staleness: int = 3, seed: int = 0) -> Arrival:
    tree = {"w": jnp.asarray(gradient, jnp.float32)}
    fetched = {"w": jnp.asarray(np.broadcast_to(FETCHED[:1], np.shape(gradient)), jnp.float32)}
    return Arrival(tree, fetched, jnp.int32(staleness), jax.random.key(seed))


def server(rule: ServerRule, optimizer: Any = SGD, now: Any = NOW) -> Server:
    parameters = {"w": jnp.asarray(now, jnp.float32)}
    return Server(parameters, optimizer.init(parameters), rule.init(parameters))


def after(rule: ServerRule, coming: Arrival, optimizer: Any = SGD) -> np.ndarray:
    made, _ = served(rule, optimizer, server(rule, optimizer), coming)
    return np.asarray(made.parameters["w"])


def test_plain_takes_the_gradient_as_it_is() -> None:
    np.testing.assert_allclose(after(plain(), arrival()), NOW - 0.1 * G, rtol=1e-6)


@pytest.mark.parametrize(("staleness", "divisor"), [(0, 1), (1, 1), (2, 2), (5, 5)])
@pytest.mark.parametrize("optimizer", [SGD, optax.adam(0.1)], ids=["sgd", "adam"])
def test_staleness_divides_the_rate(staleness: int, divisor: int, optimizer: Any) -> None:
    full = after(plain(), arrival(), optimizer) - NOW
    slowed = after(staleness_aware(), arrival(staleness=staleness), optimizer) - NOW
    np.testing.assert_allclose(slowed, full / divisor, rtol=1e-5, atol=1e-7)


def test_a_delay_is_compensated() -> None:
    """g + λ g⊙g⊙(w - fetched) = [1 + 0.04·1·0.5, -2 + 0.04·4·(-0.5), 0 + 0]."""
    compensated = np.array([1.02, -2.08, 0.0])
    np.testing.assert_allclose(after(dc_asgd(0.04), arrival()), NOW - 0.1 * compensated, rtol=1e-6)


def test_an_adaptive_compensation_divides_by_the_mean_square() -> None:
    """s = 0.05·[1, 4, 0], then 0.95·s + 0.05·[4, 1, 1]; λ = 2 / √(s + 1e-7)."""
    rule = dc_asgd(2.0, decay=0.95)
    state = server(rule)
    square = np.zeros(3)
    for gradient in (G, np.array([2.0, 1.0, -1.0])):
        now = np.asarray(state.parameters["w"])
        square = 0.95 * square + 0.05 * gradient**2
        factor = 2 / np.sqrt(square + 1e-7)
        wanted = now - 0.1 * (gradient + factor * gradient**2 * (now - 0.5))
        state, _ = served(rule, SGD, state, arrival(gradient))
        np.testing.assert_allclose(state.parameters["w"], wanted, rtol=1e-5)
        np.testing.assert_allclose(state.rule["w"], square, rtol=1e-6)


def test_a_compensated_gradient_is_nearer_to_the_one_that_was_missed() -> None:
    """Of log(1 + exp(-w)), whose gradient -σ(-w) and curvature σ(w)σ(-w) go together as for a
    model that is nearly right half of the time: at 0, g² = 1/4 is the curvature."""

    def gradient(w: float) -> float:
        return -1 / (1 + np.exp(w))

    coming = Arrival({"w": jnp.float32(gradient(0.0))}, {"w": jnp.float32(0)}, jnp.int32(1), None)  # type: ignore[arg-type]
    late, _ = dc_asgd(1.0).on_gradient(coming, {"w": jnp.float32(0.4)}, ())
    missed = gradient(0.4)
    assert abs(float(late["w"]) - missed) < 0.05 * abs(gradient(0.0) - missed)


@pytest.mark.parametrize("rule", [dc_asgd(0.0), dc_asgd(0.0, 0.9), hogwild(1.0)])
def test_without_compensation_or_gaps_a_rule_is_plain(rule: ServerRule) -> None:
    np.testing.assert_array_equal(after(rule, arrival()), after(plain(), arrival()))


def test_sparse_updates_write_a_share_and_keep_the_mean() -> None:
    gradient = np.linspace(-1, 1, 10_001)  # the middle one is 0
    rule = hogwild(0.25)
    moved = np.zeros(len(gradient))
    for seed in range(64):
        made, _ = served(
            rule, SGD, server(rule, now=np.zeros(len(gradient))), arrival(gradient, seed=seed)
        )
        update = np.asarray(made.parameters["w"])
        written = update != 0
        # 10,000 entries, each by a coin: five standard deviations.
        assert abs(written.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 10_000)
        np.testing.assert_allclose(update[written], -0.4 * gradient[written], rtol=1e-5)
        moved += update
    # Each entry's mean of 64 has a deviation of √(3 / 64) of it.
    assert np.corrcoef(moved, -gradient)[0, 1] > 0.9
    assert (moved / 64) @ -gradient / (gradient @ gradient) == pytest.approx(0.1, rel=0.02)


def test_what_a_gradient_does_not_touch_stays_whatever_the_optimizer_would_do() -> None:
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    rule = hogwild(1.0)
    state = server(rule, optimizer)
    state, _ = served(rule, optimizer, state, arrival([1.0, 1.0, 1.0]))
    first = np.asarray(state.parameters["w"])
    state, _ = served(rule, optimizer, state, arrival(G))
    second = np.asarray(state.parameters["w"])
    assert second[2] == first[2] and (second[:2] != first[:2]).all()
