"""Clients: an assignment as two arrays, its digest, and how much its labels differ."""

import json

import numpy as np
import pytest

from research.data.clients import NOBODY, Clients

OWNERS = np.array([1, 0, 1, NOBODY, 0, 1])
LABELS = np.array([0, 1, 0, 0, 1, 1])


def test_who_has_what():
    clients = Clients.of(OWNERS, LABELS, 2, ("a", "b", "c"))
    assert [clients[client].tolist() for client in range(3)] == [[1, 4], [0, 2, 5], []]
    assert clients.sizes.tolist() == [2, 3, 0]
    assert clients.histogram.tolist() == [[0, 2], [2, 1], [0, 0]]
    np.testing.assert_array_equal(clients.owners, OWNERS)
    content = json.loads(json.dumps(clients.to_json()))
    assert content["left_out"] == 1 and content["sizes"] == [2, 3, 0]
    assert content["names"] == ["a", "b", "c"] and content["digest"] == clients.digest
    with pytest.raises(IndexError, match="client 3 of 3"):
        clients[3]


def test_total_variation_by_hand():
    # All: label 0 and 1 with 2/5 and 3/5. Client a has (0, 1), b (2/3, 1/3): 2/5 and 4/15 apart.
    clients = Clients.of(OWNERS, LABELS, 2, ("a", "b", "c"))
    np.testing.assert_allclose(clients.distances, [2 / 5, 4 / 15, 0])
    assert clients.heterogeneity == pytest.approx((2 * 2 / 5 + 3 * 4 / 15) / 5)


def test_windows_of_text_count_each_token():
    labels = np.array([[0, 1, 1], [2, 2, 2], [0, 0, 0]])
    clients = Clients.of(np.array([0, 1, 0]), labels, 3, ("a", "b"))
    assert clients.histogram.tolist() == [[4, 2, 0], [0, 0, 3]]
    assert clients.sizes.tolist() == [2, 1]


def test_the_digest_is_of_the_assignment_alone():
    names = ("a", "b", "c")
    first = Clients.of(OWNERS, LABELS, 2, names).digest
    assert first == Clients.of(OWNERS.astype(np.int16), 1 - LABELS, 3, ("x", "y", "z")).digest
    for place in range(len(OWNERS)):
        other = OWNERS.copy()
        other[place] = (other[place] + 1) % 3
        assert Clients.of(other, LABELS, 2, names).digest != first
    # Clients without examples, and examples without clients, count.
    assert Clients.of(OWNERS, LABELS, 2, (*names, "d")).digest != first
    more = np.append(OWNERS, NOBODY), np.append(LABELS, 0)
    assert Clients.of(*more, 2, names).digest != first
