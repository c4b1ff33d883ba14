"""Averages, and the collectives under them, against NumPy; bytes against formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.exchange import Message, Moment, Replicas, chain, hierarchical_mean, mean, sent
from research.exchange.exchange import Exchange

X = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)


LIE = [Replicas(8), Replicas(4, 2), Replicas(2, 4), Replicas(1, 8)]


@pytest.mark.parametrize("replicas", LIE, ids=str)
def test_collectives_are_those_of_the_stacked_array(replicas: Replicas, seen: Any) -> None:
    def all_of_them(number: jax.Array, x: jax.Array) -> Any:
        return (
            replicas.sum(x),
            replicas.gather(x),
            [replicas.shift(x, by) for by in range(-2, 8)],
            replicas.trade(jnp.stack([x * (to + 1) for to in range(8)])),
        )

    total, gathered, shifted, traded = seen(all_of_them, replicas, X)
    np.testing.assert_allclose(total, np.broadcast_to(X.sum(0), X.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gathered, np.broadcast_to(X, (8, *X.shape)))
    for by, rolled in zip(range(-2, 8), shifted, strict=True):
        np.testing.assert_array_equal(rolled, np.roll(X, by, axis=0))
    factors = np.arange(1, 9, dtype=np.float32)[:, None, None, None]
    np.testing.assert_array_equal(traded, X[None] * factors)


def averaged(seen: Any, exchange: Exchange, replicas: Replicas, alive: Any = None) -> Any:
    def one(number: jax.Array, x: jax.Array, alive: jax.Array | None = None) -> Any:
        moment = Moment(replicas, jnp.int32(0), number, jax.random.key(0), alive)
        return exchange.apply({"w": x}, exchange.init({"w": x}), moment)[0]["w"]

    return seen(one, replicas, X, *([] if alive is None else [alive]))


@pytest.mark.parametrize("replicas", LIE, ids=str)
@pytest.mark.parametrize("groups", [None, 1, 2, 4, 8])
def test_a_mean_in_two_levels_is_the_mean(
    replicas: Replicas, groups: int | None, seen: Any
) -> None:
    exchange = mean() if groups is None else hierarchical_mean(groups)
    expected = np.broadcast_to(X.mean(0), X.shape)
    np.testing.assert_allclose(averaged(seen, exchange, replicas), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exchange", [mean(), hierarchical_mean(2)])
@pytest.mark.parametrize("replicas", [Replicas(8), Replicas(4, 2)], ids=str)
def test_the_dead_give_nothing_and_get_the_mean_of_the_living(
    exchange: Exchange, replicas: Replicas, seen: Any
) -> None:
    alive = np.array([1, 1, 0, 1, 1, 0, 0, 1], bool)
    before = X.copy()
    try:
        X[2], X[5] = np.nan, np.inf
        got = averaged(seen, exchange, replicas, alive)
    finally:
        X[:] = before
    np.testing.assert_allclose(
        got, np.broadcast_to(X[alive].mean(0), X.shape), rtol=1e-5, atol=1e-6
    )


def test_what_is_sent_is_what_rings_send() -> None:
    """For 15 float32, 60 bytes, on 8 devices: 2 · 7/8 · 60 = 105."""
    like = {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
    assert sent(mean().messages(like, Replicas(8))) == 105
    assert sent(mean().messages(like, Replicas(1, 8))) == 0
    assert sent(mean().messages(like, Replicas(2, 4))) == 60  # seats are added up before
    # Inside groups of 4 as well 2 · 3/4 · 60 = 90, then between two groups 2 · 1/2 · 60 = 60.
    levels = hierarchical_mean(2).messages(like, Replicas(8))
    assert [(m.parties, m.sent) for m in levels] == [(4, 90), (2, 60)]
    bfloat16 = {"all-gather": 7 * 30, "all-to-all": 26, "collective-permute": 30}
    for kind, sends in bfloat16.items():
        assert Message(kind, "bfloat16", 15, 8).sent == sends


def test_a_chain_is_one_after_another(seen: Any) -> None:
    def doubling(like: Any) -> Any:
        return jnp.zeros(())

    double = Exchange(
        doubling,
        lambda tree, state, moment: (jax.tree.map(lambda x: 2 * x, tree), state + 1),
        lambda shapes, replicas: [Message("all-gather", "int8", 1, replicas.devices)],
    )
    both = chain(double, mean(), double)
    got = averaged(seen, both, Replicas(8))
    np.testing.assert_allclose(got, np.broadcast_to(4 * X.mean(0), X.shape), rtol=1e-5, atol=1e-6)
    like = {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
    assert sent(both.messages(like, Replicas(8))) == 105 + 2 * 7
