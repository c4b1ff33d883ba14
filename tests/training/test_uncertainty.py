"""Scores of probabilities, against their definitions written out one by one."""

import numpy as np
import pytest

from research.training.combiners import stacked, weighted, weights
from research.training.uncertainty import (
    Answers,
    Reliability,
    aupr,
    auroc,
    disagreement,
    divergence,
)

N, K, M = 60, 4, 3


def drawn(sharp: float = 1.5, members: int = M) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [members, n, classes], and labels [n] that they know something of."""
    generator = np.random.default_rng(0)
    labels = generator.integers(K, size=N)
    logits = sharp * generator.normal(size=(members, N, K)) + 1.2 * np.eye(K)[labels]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels


def test_scores_are_those_of_their_definitions() -> None:
    log_p, labels = drawn()
    p = np.exp(log_p[0])
    answers = Answers.of(log_p, labels)[0]
    nll = brier = wrong = 0.0
    for i in range(N):
        nll -= np.log(p[i, labels[i]]) / N
        brier += sum((p[i, k] - (k == labels[i])) ** 2 for k in range(K)) / N
        wrong += (p[i].argmax() != labels[i]) / N
        entropy = -sum(p[i, k] * np.log(p[i, k]) for k in range(K))
        assert answers.entropy[i] == pytest.approx(entropy)
    summary = answers.summary()
    assert summary["nll"] == pytest.approx(nll)
    assert summary["brier"] == pytest.approx(brier)
    assert summary["error"] == pytest.approx(wrong)
    # 15 bins (b/15, (b+1)/15], one after another.
    wanted = 0.0
    for low in np.arange(15) / 15:
        inside = [i for i in range(N) if low < p[i].max() <= low + 1 / 15]
        if inside:
            right = np.mean([p[i].argmax() == labels[i] for i in inside])
            wanted += len(inside) / N * abs(right - np.mean([p[i].max() for i in inside]))
    assert summary["ece"] == pytest.approx(wanted)
    order = np.argsort(p.max(-1), kind="stable").reshape(15, N // 15)
    wanted = np.mean(
        [abs(p[b].max(-1).mean() - (p[b].argmax(-1) == labels[b]).mean()) for b in order]
    )
    assert summary["ece_adaptive"] == pytest.approx(wanted)


def test_certain_answers_are_in_the_last_bin_and_have_no_entropy() -> None:
    with np.errstate(divide="ignore"):
        log_p = np.log(np.eye(K)[[0, 1, 2]])
    answers = Answers.of(log_p, np.array([0, 1, 3]))
    assert answers.entropy.tolist() == [0, 0, 0]
    assert answers.brier.tolist() == [0, 0, 2]
    assert Reliability.of(answers).error == pytest.approx(1 / 3)
    assert np.isinf(answers.summary()["nll"])


def test_outside_is_told_from_inside_by_counting_pairs() -> None:
    generator = np.random.default_rng(1)
    outside, inside = generator.integers(8, size=25) / 2 + 1, generator.integers(8, size=40) / 2
    pairs = [(a > b) + (a == b) / 2 for a in outside for b in inside]
    assert auroc(outside, inside) == pytest.approx(np.mean(pairs))
    precision = []  # at every example from outside, of all that score as much or more
    for score in outside:
        hits, alarms = (outside >= score).sum(), (inside >= score).sum()
        precision.append(hits / (hits + alarms))
    assert aupr(outside, inside) == pytest.approx(np.mean(precision))
    assert auroc(inside + 9, inside) == aupr(inside + 9, inside) == 1


def test_pairs_of_members_are_compared_both_ways() -> None:
    log_p, _ = drawn()
    p = np.exp(log_p)
    pairs = [(a, b) for a in range(M) for b in range(M) if a != b]
    apart = np.mean([p[a].argmax(-1) != p[b].argmax(-1) for a, b in pairs], axis=0)
    np.testing.assert_allclose(disagreement(log_p), apart)
    kl = np.mean([(p[a] * np.log(p[a] / p[b])).sum(-1) for a, b in pairs], axis=0)
    np.testing.assert_allclose(divergence(log_p), kl)
    assert not disagreement(log_p[:1]).any()


def nll(log_p: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_p[np.arange(len(labels)), labels].mean())


def test_weights_are_the_likeliest_of_all_on_a_grid() -> None:
    log_p, labels = drawn(sharp=3.0)
    found = weights(log_p[:, np.arange(N), labels], rounds=2000)
    assert found.sum() == pytest.approx(1)
    best = nll(weighted(found)(log_p), labels)
    for a in np.linspace(0, 1, 21):
        for b in np.linspace(0, 1 - a, 21):
            mixture = a * np.exp(log_p[0]) + b * np.exp(log_p[1])
            mixture += (1 - a - b) * np.exp(log_p[2])
            assert best <= nll(np.log(mixture), labels) + 1e-9


def test_stacking_finds_where_no_coefficient_gains() -> None:
    """Its slope is 0 there, by differences; and members that only guess get no weight."""
    log_p, labels = drawn(sharp=0.7)
    generator = np.random.default_rng(2)
    noise = np.log(generator.dirichlet(np.ones(K), size=(1, N)))
    both = np.concatenate([log_p[:1], noise])
    pull = 1e-3
    combined = stacked(both, labels, pull)(both)
    # Recover the coefficients from what it says: logits are linear in them.
    centered = [each - each.mean(-1, keepdims=True) for each in (combined, *both)]
    columns = [centered[1].ravel(), centered[2].ravel()]
    columns += [np.tile(np.eye(K)[k] - 1 / K, N) for k in range(K - 1)]
    a = np.linalg.lstsq(np.stack(columns, 1), centered[0].ravel(), rcond=None)[0]

    def objective(one: float, other: float) -> float:
        logits = one * both[0] + other * both[1] + np.append(a[2:], 0)
        value = nll(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels)
        return value + pull / 2 * ((one - 0.5) ** 2 + (other - 0.5) ** 2)

    for move in (1e-3, -1e-3):
        assert objective(a[0] + move, a[1]) > objective(a[0], a[1])
        assert objective(a[0], a[1] + move) > objective(a[0], a[1])
    assert abs(a[1]) < 0.3 * a[0]
