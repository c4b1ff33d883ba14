"""Graphs and their mixing: gaps of the papers' formulas, the mean kept, bytes of neighbors only."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.exchange import Moment, Replicas, mix, sent
from research.exchange.topology import GRAPHS, mixing_matrix, offsets, spectral_gap


def test_neighbors_of_the_graphs() -> None:
    assert offsets("ring", 8) == [1, 7]
    assert offsets("ring", 2) == [1]
    assert offsets("torus", 16) == [1, 4, 12, 15]
    assert offsets("torus", 12) == [1, 3, 9, 11]
    assert offsets("exponential", 8) == [1, 2, 4]
    assert offsets("exponential", 6) == [1, 2, 4]
    assert offsets("complete", 4) == [1, 2, 3]
    assert all(offsets(graph, 1) == [] for graph in GRAPHS)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("count", [2, 3, 8, 9, 16])
def test_mixing_is_doubly_stochastic_and_its_gap_that_of_its_eigenvalues(
    graph: str, count: int
) -> None:
    matrix = mixing_matrix(offsets(graph, count), count)
    np.testing.assert_allclose(matrix.sum(0), 1)
    np.testing.assert_allclose(matrix.sum(1), 1)
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert spectral_gap(offsets(graph, count), count) == pytest.approx(1 - moduli[-2], abs=1e-6)


def test_gaps_are_those_of_the_formulas() -> None:
    """Ring of weights 1/3: eigenvalues 1/3 + 2/3·cos 2πj/n. Complete: 0. Exponential on 2^k nodes:
    1 - 2/(1 + k) (Ying et al. 2021, arXiv:2110.13363, prop. 1)."""
    for count in (8, 16, 32):
        ring = spectral_gap(offsets("ring", count), count)
        assert ring == pytest.approx(2 / 3 - 2 / 3 * math.cos(2 * math.pi / count))
        assert spectral_gap(offsets("complete", count), count) == pytest.approx(1)
        gap = spectral_gap(offsets("exponential", count), count)
        assert gap == pytest.approx(2 / (1 + math.log2(count)))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("replicas", [Replicas(8), Replicas(2, 4)], ids=str)
def test_a_round_is_the_matrix_and_keeps_the_mean(
    graph: str, replicas: Replicas, seen: Any
) -> None:
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    exchange = mix(offsets(graph, 8), 8)

    def one(number: jax.Array, x: jax.Array) -> jax.Array:
        moment = Moment(replicas, jnp.int32(0), number, jax.random.key(0))
        return exchange.apply([x], (), moment)[0][0]

    mixed = seen(one, replicas, x)
    np.testing.assert_allclose(mixed, mixing_matrix(offsets(graph, 8), 8) @ x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed.mean(0), x.mean(0), rtol=1e-5, atol=1e-6)


def test_only_neighbors_are_sent_to() -> None:
    like = {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
    assert sent(mix(offsets("ring", 8), 8).messages(like, Replicas(8))) == 2 * 60
    assert sent(mix(offsets("exponential", 64), 64).messages(like, Replicas(64))) == 6 * 60
    # Of four seats one has its neighbor elsewhere, on either side.
    assert sent(mix(offsets("ring", 8), 8).messages(like, Replicas(2, 4))) == 2 * 60


def test_a_graph_in_pieces_is_refused() -> None:
    with pytest.raises(UserError, match="offsets 2, 4 among 8 replicas make 2 groups that never"):
        mix([2, 4], 8)
