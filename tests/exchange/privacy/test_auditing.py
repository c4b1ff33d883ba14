"""The lower bound on ε: beside exact sums, the paper's numbers, and what a real run does."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from research import runs, trained
from research.exchange.privacy import audited
from research.exchange.privacy.auditing import epsilon_at_least, p_value
from research.experiment import (
    Experiment,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    PrivacyConfig,
    RunConfig,
)


@pytest.mark.parametrize(("guesses", "correct"), [(1, 1), (20, 13), (50, 50), (60, 0)])
def test_without_delta_it_is_a_sum_of_binomials(guesses: int, correct: int) -> None:
    """Exactly, in fractions, at e^ε = 3: a guess is right with a probability of 3/4."""
    terms = range(correct, guesses + 1)
    exact = sum(Fraction(math.comb(guesses, k) * 3**k, 4**guesses) for k in terms)
    assert p_value(100, guesses, correct, math.log(3), 0.0) == pytest.approx(float(exact))


def test_delta_costs_what_the_theorem_says() -> None:
    for guesses, correct, epsilon in ((30, 25, 0.5), (100, 75, 0.7), (7, 7, 2.0), (9, 0, 1.0)):
        q = 1 / (1 + math.exp(-epsilon))
        window = [binom.pmf(range(correct - i, correct), guesses, q).sum() / i
                  for i in range(1, correct + 1)]  # fmt: skip
        wanted = binom.sf(correct - 1, guesses, q) + 2 * 500 * 1e-4 * max(window, default=0)
        assert p_value(500, guesses, correct, epsilon, 1e-4) == pytest.approx(min(wanted, 1))


@pytest.mark.parametrize(
    ("printed", "numbers"),
    [(0.673, (1_000, 100, 75, 1e-4, 0.05)), (2.675, (100_000, 1_510, 1_439, 1e-5, 0.05))],
)
def test_the_numbers_of_the_paper(
    printed: float, numbers: tuple[int, int, int, float, float]
) -> None:
    """App. D, and §7, which cuts the last digit off."""
    assert epsilon_at_least(*numbers) == pytest.approx(printed, abs=1e-3)


def test_more_right_guesses_prove_more_and_delta_or_confidence_less() -> None:
    bounds = [epsilon_at_least(200, 100, v, 1e-5, 0.05) for v in range(0, 101, 5)]
    assert bounds == sorted(bounds) and bounds[10] == 0 < bounds[13] < 3 < bounds[-1] < 4
    at = [epsilon_at_least(200, 100, 80, delta, 0.05) for delta in (0.0, 1e-4, 1e-3, 1e-2)]
    assert at == sorted(at, reverse=True) and at[0] > at[-1]
    assert epsilon_at_least(200, 100, 80, 0.0, 0.05) > epsilon_at_least(200, 100, 80, 0.0, 0.01)


def test_a_bound_is_too_high_as_rarely_as_it_says() -> None:
    """Randomized response of e^ε = 3 tells all that ε allows: the worst case of the theorem."""
    draw, above = np.random.default_rng(0), 0
    for _ in range(400):
        included = draw.random(64) < 0.5
        seen = included ^ (draw.random(64) < 0.25)
        audit = audited(seen + 0.1 * draw.random(64), included, 0.0)
        above += audit.epsilon > math.log(3)
    assert above <= 400 * 0.05
    known = audited(included + draw.random(64), included, 0.0)
    assert known.correct == known.guesses and known.epsilon > 1.9


EXPERIMENT = Experiment(
    model=MLPConfig(widths=(128,)),
    data=ImagesConfig(name="digits", batch=128),
    optimizer=OptimizerConfig(learning_rate=5e-3, clip=None, schedule="constant"),
    privacy=PrivacyConfig(epsilon=4.0, delta=1e-4, canaries=200),
    run=RunConfig(
        steps=300, log_every=100, evaluate_every=0, checkpoint_every=300, tensorboard=False
    ),
)


def test_learning_by_heart_is_seen_and_noise_hides_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(EXPERIMENT.run, directory=str(tmp_path / "open"))
    result = trained.evaluate(runs.train(replace(EXPERIMENT, run=run)))
    assert result["epsilon_at_least"] > 1.5
    said = capsys.readouterr().out
    assert "guesses right, on 200 canaries; 95% confidence), at most ∞ (nothing is priv" in said

    private = replace(EXPERIMENT.privacy, unit="example", seed=3)
    run = replace(EXPERIMENT.run, steps=100, directory=str(tmp_path / "private"))
    result = trained.evaluate(runs.train(replace(EXPERIMENT, privacy=private, run=run)))
    assert 3.8 < result["epsilon"] <= 4
    assert result["epsilon_at_least"] < 1
    said = capsys.readouterr().out
    assert f"confidence), at most {result['epsilon']:.3f} (the ledger)" in said
