"""Partitioners: every example once, no client empty, and the skew that each paper states."""

from itertools import pairwise

import numpy as np
import pytest

from research.data.clients import Clients
from research.data.partition import PartitionConfig, cut, partition
from research.errors import UserError

TEN = np.random.RandomState(5).permutation(np.repeat(np.arange(10), 600))  # like digits
KINDS = ("iid", "shards", "similarity", "dirichlet", "dirichlet_by_label", "quantity")


def made(kind: str, labels: np.ndarray = TEN, classes: int = 10, **fields: object) -> Clients:
    return partition(labels, classes, PartitionConfig(kind, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.05, 1, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_example_is_with_one_client_and_no_client_is_empty(kind, alpha):
    clients = made(kind, clients=23, alpha=alpha, minimum=2)
    assert len(clients) == 23 and clients.sizes.min() >= 2
    np.testing.assert_array_equal(np.sort(clients.indexes), np.arange(len(TEN)))
    for client in range(23):
        counts = np.bincount(TEN[clients[client]], minlength=10)
        np.testing.assert_array_equal(counts, clients.histogram[client])
    if kind in ("iid", "similarity", "dirichlet"):
        assert np.ptp(clients.sizes) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_labels_and_config(kind):
    np.random.seed(1)  # noqa: NPY002 - the state that must not matter
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    first = made(kind, clients=10).digest
    after = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    np.testing.assert_array_equal(after, before)
    np.random.seed(2)  # noqa: NPY002
    assert made(kind, clients=10).digest == first
    digests = {made(kind, clients=10, seed=seed).digest for seed in range(4)}
    assert len(digests) == 4 and first in digests


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("iid", "baa07aed"),
        ("shards", "2e9484f3"),
        ("similarity", "9d14e23f"),
    ],
)
def test_the_assignment_stays_the_same_on_every_numpy(kind, digest):
    """Only integers are drawn for these: no rounding of a processor can change them."""
    assert made(kind, clients=10).digest.startswith(digest)


def test_shards_of_mcmahan():
    """60,000 digits, 100 clients of 600 in two shards of 300: at most two digits each."""
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 6000))
    clients = made("shards", labels)
    assert set(clients.sizes) == {600}
    assert set(np.unique(clients.histogram)) == {0, 300, 600}
    # The partner of a shard is one of 199 others, of which 19 have its digit: 9.5 in expectation.
    assert 1 <= np.sum(clients.histogram == 600) <= 20
    five = made("shards", labels, shards_per_client=5)
    assert set(five.sizes) == {600} and (five.histogram > 0).sum(axis=1).max() <= 5


def test_similarity_of_karimireddy():
    """20 clients of 300, ten labels of 600: without similarity a client has one label, with a tenth
    30 examples of a shuffle and a piece of 270 of one or two labels."""
    sorted_ = made("similarity", clients=20, similarity=0.0)
    assert set(np.unique(sorted_.histogram)) == {0, 300}
    tenth = made("similarity", clients=20, similarity=0.1)
    assert set(tenth.sizes) == {300}
    two = np.sort(tenth.histogram, axis=1)[:, -2:].sum(axis=1)
    assert two.min() >= 270 and two.max() < 300
    assert (tenth.histogram > 0).sum(axis=1).min() > 5  # of each label three in the mean
    distances = [
        made("similarity", clients=20, similarity=s).heterogeneity for s in (0, 0.1, 0.5, 1)
    ]
    assert distances == sorted(distances, reverse=True) and distances[0] == pytest.approx(0.9)
    chance = 10 * np.sqrt(0.1 * 0.9 / (2 * np.pi * 300))  # of 300 random labels
    assert distances[-1] == pytest.approx(chance, rel=0.2)


def test_alpha_towards_infinity_is_iid_and_towards_zero_one_label():
    distances = [
        made("dirichlet", clients=20, alpha=alpha).heterogeneity
        for alpha in (1e-8, 0.1, 1.0, 10.0, 1e8)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] == pytest.approx(0.9)  # one of ten labels: 1 - 1/10
    assert ((made("dirichlet", clients=20, alpha=1e-8).histogram > 0).sum(axis=1) == 1).all()
    # Of 300 random labels sum_y sqrt(p (1 - p) / (2 pi n)) = 0.0691; 20 clients, within a fifth.
    chance = 10 * np.sqrt(0.1 * 0.9 / (2 * np.pi * 300))
    assert distances[-1] == pytest.approx(chance, rel=0.2)
    assert made("iid", clients=20).heterogeneity == pytest.approx(chance, rel=0.2)


def test_labels_shared_out_by_a_dirichlet():
    """Shares of Dir(alpha) over K clients have variance (K - 1) / (K^2 (K alpha + 1))."""
    labels = np.repeat(np.arange(400), 1000)
    for alpha in (0.3, 3.0):
        clients = made("dirichlet_by_label", labels, 400, clients=5, alpha=alpha)
        share = clients.histogram / 1000
        # 400 draws of 5 shares: the deviation of their variance is below a fifteenth.
        assert share.var() == pytest.approx(4 / (25 * (5 * alpha + 1)), rel=0.2)
    even = made("dirichlet_by_label", clients=20, alpha=1e9)
    assert set(np.unique(even.histogram)) == {30} and even.heterogeneity == 0


def test_sizes_by_a_dirichlet():
    even = made("quantity", clients=20, alpha=1e9)
    assert set(even.sizes) == {300}
    skewed = made("quantity", clients=20, alpha=1e-8, minimum=7)
    assert sorted(skewed.sizes)[:19] == [7] * 19 and skewed.sizes.max() == 6000 - 19 * 7


def test_a_table_is_cut_into_ranges_of_a_column():
    scores = np.random.RandomState(0).normal(size=len(TEN))
    clients = partition(TEN, 10, PartitionConfig("feature", clients=4), scores=scores)
    ranges = [(scores[clients[c]].min(), scores[clients[c]].max()) for c in range(4)]
    assert set(clients.sizes) == {1500}
    assert all(low[1] < high[0] for low, high in pairwise(ranges))


def test_ten_thousand_clients():
    labels = np.repeat(np.arange(10), 6000)
    for kind in ("iid", "shards", "similarity", "dirichlet", "quantity"):
        clients = made(kind, labels, clients=10_000)
        assert clients.sizes.min() >= 1 and clients.sizes.sum() == 60_000


def test_parts_add_up():
    assert cut(10, np.array([1, 1, 1.0]), 0.5).tolist() == [3, 4, 3]
    assert cut(0, np.array([1, 2.0]), 0.9).tolist() == [0, 0]
    shares = np.random.RandomState(0).gamma(0.1, size=100)
    for start in (0.0, 0.5, 0.99):
        parts = cut(1000, shares, start)
        assert parts.sum() == 1000 and parts.min() >= 0
        assert np.abs(parts - 1000 * shares / shares.sum()).max() < 1 + 1e-9


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (PartitionConfig(clients=6001), "6001 clients of at least 1 examples need 6001, .* 6000"),
        (PartitionConfig(clients=100, minimum=61), "use 98 clients or fewer, or a smaller minimum"),
        (PartitionConfig(clients=0), "clients 0 cannot be"),
        (PartitionConfig(alpha=0.0), "alpha 0.0 is no concentration: set a number above 0"),
        (PartitionConfig(alpha=-1.0), "alpha -1.0"),
        (PartitionConfig(alpha=float("nan")), "alpha nan"),
        (PartitionConfig(similarity=10), "similarity 10 is no share: set a number from 0 .* to 1"),
        (PartitionConfig(similarity=float("nan")), "similarity nan"),
        (PartitionConfig(seed=-1), "seed -1 is outside of 0 to 4294967295"),
        (PartitionConfig("shards", clients=4000), "4000 clients of 2 shards need 8000 .* 6000"),
        (
            PartitionConfig("shards", clients=1700, minimum=3),
            "the smallest of 1700 clients has 2 of 6000 examples, fewer than the minimum 3",
        ),
        (
            PartitionConfig("dirichlet_by_label", clients=100, alpha=1e-4),
            "in 100 draws at alpha 0.0001 there was always one of 100 clients with fewer than 1",
        ),
        (PartitionConfig("natural"), "no clients of its own: use heart_disease"),
    ],
)
def test_what_cannot_be_dealt_out_is_said_with_the_numbers(config, sentence):
    with pytest.raises(UserError, match=sentence):
        partition(TEN, 10, config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_with_no_client_is_named(kind):
    with pytest.raises(UserError, match=r"of 12 labels 3 \(4, 10, 11\) are with no client"):
        made(kind, TEN[TEN != 4], 12, clients=10)


def test_windows_of_text_have_no_label():
    windows = np.zeros((50, 8), int)
    for kind in ("shards", "similarity", "dirichlet", "dirichlet_by_label"):
        with pytest.raises(UserError, match="a window of text has none: use natural"):
            made(kind, windows, 10, clients=5)
    assert set(made("iid", windows, 10, clients=5).sizes) == {10}
