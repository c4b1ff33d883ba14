"""How well probabilities are meant: proper scores, calibration, and what is not known.

Of n targets with probabilities p [n, classes] and labels y:

    NLL      -1/n Σ_i log p_i(y_i)
    Brier    1/n Σ_i Σ_k (p_i(k) - 1[k = y_i])²        (Brier 1950; 0 to 2)
    ECE      Σ_b n_b/n · |accuracy of b - confidence of b|     over bins b of the confidence
             max_k p_i(k), of equal width, or of equal numbers (adaptive: Nguyen, O'Connor 2015)
    AUROC    that an example from outside has a larger entropy than one from inside (½ if equal)
    AUPR     the mean precision at every example from outside, by falling entropy

Guo, Pleiss, Sun and Weinberger 2017, arXiv:1706.04599, is the source of 15 bins. All in float64.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BINS = 15


class Answers(NamedTuple):
    """What is kept of probabilities: float64 [..., n] each."""

    log_likelihood: np.ndarray  # of the label, nats
    correct: np.ndarray  # 1 or 0
    brier: np.ndarray
    confidence: np.ndarray  # of the likeliest class
    entropy: np.ndarray  # nats

    @classmethod
    def of(cls, log_p: np.ndarray, labels: np.ndarray) -> "Answers":
        """Of `log_p` [..., n, classes] and `labels` [n]."""
        log_p = log_p.astype(np.float64)
        p = np.exp(log_p)
        label = np.broadcast_to(labels[:, None], (*log_p.shape[:-1], 1))
        of_label = np.take_along_axis(log_p, label, axis=-1)[..., 0]
        # Σ_k (p_k - 1[k = y])² = Σ_k p_k² - 2 p_y + 1
        brier = np.sum(p * p, axis=-1) - 2 * np.exp(of_label) + 1
        surprise = np.where(p > 0, -p * np.where(p > 0, log_p, 0), 0)
        return cls(
            of_label,
            (np.argmax(log_p, axis=-1) == labels).astype(np.float64),
            brier,
            np.max(p, axis=-1),
            np.sum(surprise, axis=-1),
        )

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Of all parts of a split."""
        return cls(*(np.concatenate(each, axis=-1) for each in zip(*parts, strict=True)))

    def __getitem__(self, index: object) -> "Answers":  # type: ignore[override]
        """Of one of several who answered, the first axis."""
        return Answers(*(leaf[index] for leaf in self._asdict().values()))  # type: ignore[index]

    def summary(self) -> dict[str, float]:
        """`nll`, `error`, `brier`, `ece` and `ece_adaptive`, of arrays [n]."""
        return {
            "nll": float(-self.log_likelihood.mean()),
            "error": float(1 - self.correct.mean()),
            "brier": float(self.brier.mean()),
            "ece": Reliability.of(self).error,
            "ece_adaptive": Reliability.of(self, adaptive=True).error,
        }


class Reliability(NamedTuple):
    """How often answers of about the same confidence are right: [bins] each, of those with any."""

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray  # of all answers

    @classmethod
    def of(cls, answers: Answers, bins: int = BINS, adaptive: bool = False) -> "Reliability":
        """By `bins` of equal width on (0, 1], or of equal numbers of answers."""
        confidence, count = answers.confidence, len(answers.confidence)
        if adaptive:
            which = np.empty(count, int)
            which[np.argsort(confidence, kind="stable")] = np.arange(count) * bins // count
        else:
            which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        sizes = np.bincount(which, minlength=bins)
        there = sizes > 0
        means = [
            np.bincount(which, weights=each, minlength=bins)[there] / sizes[there]
            for each in (confidence, answers.correct)
        ]
        return cls(means[0], means[1], sizes[there] / count)

    @property
    def error(self) -> float:
        """The expected calibration error."""
        return float(np.sum(self.share * np.abs(self.accuracy - self.confidence)))


def auroc(outside: np.ndarray, inside: np.ndarray) -> float:
    """The chance that a score [n] from outside is above one [m] from inside, ½ where equal."""
    scores = np.concatenate([inside, outside])
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # of ties the middle one, from 1
    below = ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2
    return float(below / (len(inside) * len(outside)))


def aupr(outside: np.ndarray, inside: np.ndarray) -> float:
    """The mean precision: Σ over thresholds of the precision at or above it, times the share of
    what is outside that it adds."""
    scores = np.concatenate([outside, inside])
    is_outside = np.arange(len(scores)) < len(outside)
    values, which = np.unique(-scores, return_inverse=True)
    found = np.bincount(which, weights=is_outside, minlength=len(values))
    taken = np.cumsum(np.bincount(which, minlength=len(values)))
    return float(np.sum(np.cumsum(found) / taken * found) / len(outside))


def disagreement(log_p: np.ndarray) -> np.ndarray:
    """[n]: the share of pairs of members of `log_p` [members, n, classes] with unequal answers."""
    votes = np.argmax(log_p, axis=-1)
    return _of_pairs(lambda a, b: (votes[a] != votes[b]).astype(np.float64), log_p)


def divergence(log_p: np.ndarray) -> np.ndarray:
    """[n]: the mean Kullback-Leibler divergence of ordered pairs of members (nats)."""
    log_p = log_p.astype(np.float64)
    p = np.exp(log_p)

    def of(a: int, b: int) -> np.ndarray:
        return np.sum(np.where(p[a] > 0, p[a] * (log_p[a] - log_p[b]), 0), axis=-1)

    return _of_pairs(of, log_p)


def _of_pairs(of: Callable[[int, int], np.ndarray], log_p: np.ndarray) -> np.ndarray:
    members = range(len(log_p))
    pairs = [of(a, b) for a in members for b in members if a != b]
    return np.mean(pairs, axis=0) if pairs else np.zeros(log_p.shape[1])
