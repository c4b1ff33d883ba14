"""The graph of Bell et al.: a ring lattice in an order that the keys decide."""

import itertools
import math

import numpy as np
import pytest

from research.errors import UserError
from research.exchange.secure_aggregation import degree
from research.exchange.secure_aggregation.graph import _tails, neighbors_of

CLIENTS = (*range(0, 60, 2), 61, 63)


@pytest.mark.parametrize("count", [2, 8, 30])
def test_every_client_has_so_many_neighbors_and_they_are_mutual(count: int) -> None:
    near = neighbors_of(CLIENTS, count, b"seed")
    assert set(near) == set(CLIENTS)
    for client, neighbors in near.items():
        assert len(set(neighbors)) == count and client not in neighbors
        assert list(neighbors) == sorted(neighbors)
        assert all(client in near[other] for other in neighbors)


def test_it_is_harary_s_graph() -> None:
    """H(k, n) needs k clients taken away to fall apart; the ring order is found by walking it."""
    near = neighbors_of(CLIENTS, 2, b"seed")
    ring = [CLIENTS[0], near[CLIENTS[0]][0]]
    while len(ring) < len(CLIENTS):
        ring.append(next(n for n in near[ring[-1]] if n != ring[-2]))
    assert sorted(ring) == list(CLIENTS)
    wide = neighbors_of(CLIENTS, 6, b"seed")
    for place, client in enumerate(ring):
        around = {ring[(place + d) % len(ring)] for d in (-3, -2, -1, 1, 2, 3)}
        assert set(wide[client]) == around


def test_few_clients_are_all_neighbors() -> None:
    for count in (4, 5, 100):
        near = neighbors_of((1, 4, 5, 7, 9), count, b"seed")
        assert near[5] == (1, 4, 7, 9)


def test_the_order_is_uniform() -> None:
    """Over 3,000 seeds every pair of 10 clients is adjacent 2/9 of the times: 45 frequencies,
    each within 5 standard deviations of 0.0076."""
    seen = np.zeros((10, 10))
    for seed in range(3000):
        for one, near in neighbors_of(range(10), 2, seed.to_bytes(4, "big")).items():
            seen[one, list(near)] += 1
    share = seen[~np.eye(10, dtype=bool)] / 3000
    assert np.abs(share - 2 / 9).max() < 5 * math.sqrt(2 / 9 * 7 / 9 / 3000)


@pytest.mark.parametrize("clients, corrupt, dropout", [(200, 0.1, 0.1), (2000, 0.05, 0.2)])
def test_the_degree_is_the_smallest_that_holds(
    clients: int, corrupt: float, dropout: float
) -> None:
    """With weak parameters (2^-10), so that an experiment of 300 graphs can contradict it: in none
    is a client unmasked by its corrupt neighbors, cut off, or left with too few."""
    k, t = degree(clients, corrupt, dropout, security=10, correctness=10)
    assert 2 * t > k and k % 2 == 0
    rng, bad = np.random.default_rng(0), 0
    for trial in range(300 if clients == 200 else 30):
        near = neighbors_of(range(clients), k, trial.to_bytes(4, "big"))
        table = np.array([near[client] for client in range(clients)])
        corrupted, gone = np.zeros((2, clients), bool)
        corrupted[rng.permutation(clients)[: math.ceil(corrupt * clients)]] = True
        gone[rng.permutation(clients)[: math.ceil(dropout * clients)]] = True
        bad += (corrupted[table].sum(1) >= t).any()
        bad += ((~gone)[table].sum(1) < t).any()
    assert bad <= 2  # 600 or 60 events of at most 2^-10: 3 or more have a probability of 0.02


def test_a_ring_is_cut_by_half_a_neighborhood_that_is_gone() -> None:
    """Where nobody is corrupt and hardly anything asked of correctness: n·0.1^(k/2) ≤ 2^-60."""
    assert degree(1000, 0.0, 0.1, security=60, correctness=1)[0] == 2 * math.ceil(
        (60 + math.log2(1000)) / math.log2(10)
    )


@pytest.mark.parametrize("population, marked, drawn", [(12, 5, 6), (9, 2, 8), (7, 7, 3), (8, 0, 2)])
def test_tails_are_counted(population: int, marked: int, drawn: int) -> None:
    """Beside every subset in turn."""
    subsets = list(itertools.combinations(range(population), drawn))
    hits = [sum(one < marked for one in subset) for subset in subsets]
    counted = [sum(h >= least for h in hits) / len(hits) for least in range(drawn + 1)]
    np.testing.assert_allclose(_tails(population, marked, drawn), counted, rtol=1e-9)


def test_stronger_demands_need_more_neighbors_and_few_clients_all() -> None:
    weak, strong = degree(1000, 0.1, 0.1, 20, 20), degree(1000, 0.1, 0.1, 40, 30)
    assert weak[0] < strong[0] < 200
    assert degree(1000, 0.2, 0.1, 40, 30)[0] > strong[0]
    with pytest.raises(UserError, match="take the complete one"):
        degree(20, 0.2, 0.2)
    with pytest.raises(UserError, match="take the complete one"):
        degree(1000, 0.6, 0.5)
