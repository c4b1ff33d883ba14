"""Gossip, against its matrices in NumPy: 8 replicas on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.exchange import Replicas
from research.exchange.exchange import Moment
from research.exchange.replicas import SEAT
from research.exchange.topology import mixing_matrix, offsets
from research.learning.replicated.gossip import dpsgd, sgp
from research.learning.replicated.rule import Rule, bytes_at

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
MOVES = np.random.default_rng(1).normal(size=(9, 8, 5)).astype(np.float32)
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}  # sums of some float32 of order 1


def run(rule: Rule, count: int, moves: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    """Parameters [replicas, 5] and states after steps that add `moves`, from replicas that start
    apart."""
    replicas = Replicas(1, count)

    def one(number: jax.Array, w: Any, state: Any, move: jax.Array, step: jax.Array) -> Any:
        moment = Moment(replicas, step, number, jax.random.key(0))
        return rule.on_parameters({"w": w["w"] + move}, state, moment)

    update = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None), axis_name=SEAT))
    w = {"w": jnp.asarray(X[:count])}
    state = jax.vmap(rule.init)(w)
    after = []
    for step, move in enumerate(moves):
        w, state = update(jnp.arange(count), w, state, move[:count], step)
        after.append((np.asarray(w["w"]), jax.device_get(state)))
    return after


@pytest.mark.parametrize("graph", ["ring", "torus", "exponential", "complete"])
def test_dpsgd_mixes_after_every_update(graph: str) -> None:
    matrix = mixing_matrix(offsets(graph, 8), 8)
    w = X
    for step, (got, _) in enumerate(run(dpsgd(offsets(graph, 8), 8), 8, MOVES)):
        w = matrix @ (w + MOVES[step])
        np.testing.assert_allclose(got, w, **CLOSE)


def test_on_the_complete_graph_replicas_agree_at_once() -> None:
    [(got, _)] = run(dpsgd(offsets("complete", 8), 8), 8, MOVES[:1])
    expected = np.broadcast_to((X + MOVES[0]).mean(0), X.shape)
    np.testing.assert_allclose(got, expected, **CLOSE)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_log2_n_pushes_average_exactly(count: int) -> None:
    still = np.zeros_like(MOVES)[: count.bit_length() - 1]
    got, state = run(sgp(count), count, still)[-1]
    np.testing.assert_allclose(got, np.broadcast_to(X[:count].mean(0), got.shape), **CLOSE)
    np.testing.assert_array_equal(state.weight, np.ones(count))


@pytest.mark.parametrize("count", [5, 8])
def test_sgp_is_algorithm_1_of_the_paper(count: int) -> None:
    x, weight = X[:count].astype(np.float64), np.ones(count)
    z = x / weight[:, None]
    turns = [1, 2, 4]
    for step, (got, state) in enumerate(run(sgp(count), count, MOVES)):
        x = x + MOVES[step, :count]
        offset = turns[step % 3]
        x = (x + np.roll(x, offset, axis=0)) / 2
        weight = (weight + np.roll(weight, offset)) / 2
        z = x / weight[:, None]
        np.testing.assert_allclose(got, z, **CLOSE)
        np.testing.assert_allclose(state.weight, weight, **CLOSE)
        # What is pushed is neither made nor lost.
        np.testing.assert_allclose(state.mass["w"].sum(0), x.sum(0), rtol=1e-4, atol=1e-4)


def test_one_peer_hears_of_parameters_and_a_weight() -> None:
    sendings = sgp(8).sendings({"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}, Replicas(8))
    assert [bytes_at(sendings, step) for step in range(4)] == [64] * 4
    ring = dpsgd(offsets("ring", 8), 8).sendings(
        {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}, Replicas(8)
    )
    assert bytes_at(ring, 0) == 120
