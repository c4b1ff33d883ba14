"""How much a run is seen to tell: a lower bound on ε, from one run, beside the ledger's upper one.

Steinke, Nasr and Jagielski 2023, *Privacy Auditing with One (1) Training Run*, arXiv:2305.08846,
Alg. 1: each of m canaries is in the training set by a coin of its own, S_i = ±1. Whoever sees what
was released scores them, guesses T_i = 1 of the k₊ that score highest, T_i = -1 of the k₋ that
score lowest, and abstains on the others. If what was released is (ε, δ) for one example added or
removed, then of r = k₊ + k₋ guesses v or more are right with a probability of at most (Thm. 5.2,
computed as in App. D)

    β + 2·m·δ·α          β = P[W >= v],   W ~ Binomial(r, e^ε / (e^ε + 1))
                         α = max_{1 <= i <= v} P[v > W >= v - i] / i

Where that is less than 1 minus the confidence, the run is not (ε, δ). The numbers of guesses are
fixed beforehand, k₊ = k₋, a few of them, each with its share of the doubt; the best one counts.
"""

from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of the canaries, on which guesses are ventured: one audit each."""


class Audit(NamedTuple):
    """What guesses prove."""

    epsilon: float  # at least, at the δ that was asked for
    canaries: int  # m
    guesses: int  # r
    correct: int  # v
    confidence: float  # that the bound is none too high

    def in_words(self, at_most: float | None) -> str:
        """Beside what the ledger says, if there is one."""
        upper = "∞ (nothing is private)" if at_most is None else f"{at_most:.3f} (the ledger)"
        return (
            f"epsilon at least {self.epsilon:.3f} ({self.correct:,} of {self.guesses:,} guesses "
            f"right, on {self.canaries:,} canaries; {self.confidence:.0%} confidence), at most "
            f"{upper}"
        )


def audited(
    scores: np.ndarray, included: np.ndarray, delta: float, confidence: float = CONFIDENCE
) -> Audit:
    """By `scores` [canaries], higher for those that look as if they were `included` [canaries]
    bool. Equal scores are told apart by their place."""
    order, canaries = np.argsort(scores, kind="stable"), len(scores)
    doubt = (1 - confidence) / len(SHARES)
    audits = []
    for share in SHARES:
        each = int(share * canaries) // 2
        if not each:
            continue
        correct = int(included[order[-each:]].sum() + (~included[order[:each]]).sum())
        least = epsilon_at_least(canaries, 2 * each, correct, delta, doubt)
        audits.append(Audit(least, canaries, 2 * each, correct, confidence))
    return max(audits, default=Audit(0.0, canaries, 0, 0, confidence))


def epsilon_at_least(
    canaries: int, guesses: int, correct: int, delta: float, doubt: float
) -> float:
    """The largest ε, up to 1e-6, that so many `correct` of so many `guesses` refute with a
    probability of error of at most `doubt`; 0 where they refute none."""

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) <= doubt

    least, most = 0.0, 1.0
    while refuted(most):
        least, most = most, 2 * most
    while most - least > 1e-6:
        middle = (least + most) / 2
        least, most = (middle, most) if refuted(middle) else (least, middle)
    return least


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """At most so likely are v = `correct` of r = `guesses`, or more, if (ε, δ) holds."""
    right = np.arange(guesses + 1)
    chosen = np.cumsum(np.log((guesses - right[:-1]) / right[1:]))  # log of r over k, from k = 1 on
    log_choose = np.concatenate([[0.0], chosen])
    # Of a guess that is right, e^ε / (e^ε + 1), and of one that is wrong.
    log_right = -np.log1p(np.exp(-epsilon))
    log_wrong = log_right - epsilon
    probabilities = np.exp(log_choose + right * log_right + (guesses - right) * log_wrong)
    beta = float(probabilities[correct:].sum())
    below = np.cumsum(probabilities[:correct][::-1]) / np.arange(1, correct + 1)
    alpha = float(below.max(initial=0.0))
    return min(beta + 2 * canaries * delta * alpha, 1.0)
