"""Combinations of members that are learned on validation examples.

Weighted: a mixture Σ_m w_m p_m whose weights are the likeliest, by expectation maximization
(Dempster, Laird and Rubin 1977), which never lowers the likelihood:

    w_m ← 1/n Σ_i w_m p_m(y_i) / Σ_j w_j p_j(y_i)

Stacked (Wolpert 1992, *Stacked Generalization*; Breiman 1996): a softmax regression on the members'
log-probabilities, one coefficient a member and one bias a class, from where it is their geometric
mean, with a pull λ towards there:

    p(k) ∝ exp(Σ_m a_m log p_m(k) + b_k),   least of -1/n Σ_i log p(y_i) + λ/2 (‖a - 1/M‖² + ‖b‖²)

by Newton's method with step halving: the sum is convex in (a, b).
"""

from collections.abc import Callable

import numpy as np

Combiner = Callable[[np.ndarray], np.ndarray]
"""From log-probabilities [members, n, classes] to those together [n, classes]."""

ROUNDS = 200
PULL = 1e-3
LEAST = -50.0
"""Log-probabilities below it tell stacking no more than it does."""


def weights(log_likelihoods: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """float64 [members]: the likeliest mixture, of `log_likelihoods` [members, n]."""
    shifted = np.exp(log_likelihoods - log_likelihoods.max(axis=0))
    found = np.full(len(shifted), 1 / len(shifted))
    for _ in range(rounds):
        parts = found[:, None] * shifted
        found = np.mean(parts / parts.sum(axis=0), axis=1)
    return found


def weighted(of: np.ndarray) -> Combiner:
    """The mixture with those weights [members]."""

    def combine(log_p: np.ndarray) -> np.ndarray:
        log_p = log_p.astype(np.float64)
        highest = log_p.max(axis=0)
        return np.log(np.tensordot(of, np.exp(log_p - highest), axes=1)) + highest

    return combine


def stacked(log_p: np.ndarray, labels: np.ndarray, pull: float = PULL) -> Combiner:
    """Learned on `log_p` [members, n, classes] and `labels` [n]."""
    features = _features(log_p)  # [n, classes, members + classes]
    members, (count, classes, size) = len(log_p), features.shape
    start = np.concatenate([np.full(members, 1 / members), np.zeros(classes)])
    found, target = start.copy(), np.eye(classes)[labels]

    def objective(at: np.ndarray) -> float:
        likely = _log_softmax(features @ at)[np.arange(count), labels]
        return float(-likely.mean() + pull / 2 * np.sum((at - start) ** 2))

    value = objective(found)
    for _ in range(ROUNDS):
        p = np.exp(_log_softmax(features @ found))
        gradient = np.einsum("nkf,nk->f", features, p - target) / count + pull * (found - start)
        middle = np.einsum("nkf,nk->nf", features, p)
        curvature = np.einsum("nkf,nk,nkg->fg", features, p, features) - middle.T @ middle
        move = np.linalg.solve(curvature / count + pull * np.eye(size), gradient)
        rate = 1.0
        while objective(found - rate * move) > value and rate > 1e-6:
            rate /= 2
        found = found - rate * move
        before, value = value, objective(found)
        if before - value < 1e-12:
            break
    return lambda log_p: _log_softmax(_features(log_p) @ found)


def _features(log_p: np.ndarray) -> np.ndarray:
    """[n, classes, members + classes]: what the coefficients are of."""
    own = np.moveaxis(np.maximum(log_p.astype(np.float64), LEAST), 0, -1)
    count, classes, _ = own.shape
    bias = np.broadcast_to(np.eye(classes), (count, classes, classes))
    return np.concatenate([own, bias], axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
