"""The discrete Gaussian against its formula, the accounting of its sums against convolutions."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from research.errors import UserError
from research.exchange.secure_aggregation import FixedPoint, NotFinite, RingOverflow, simulate
from research.exchange.secure_aggregation.discrete_gaussian import LARGEST, _below, sample
from research.exchange.secure_aggregation.distributed_noise import (
    DistributedNoise,
    calibrated,
    divergence,
    inflation,
)
from tests.exchange.secure_aggregation.conftest import a_round, identities

# Tests of chance fail once in 10^6 runs each.
RARE = 1e-6


def mass(deviation: float, reach: int) -> np.ndarray:
    """P[X = x] for |x| ≤ reach, by the formula."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * deviation**2))
    return weights / weights.sum()


@pytest.mark.parametrize("deviation", [1, 2, 5])
def test_samples_have_the_mass_of_the_formula(deviation: int) -> None:
    count, reach = 200_000, 12 * deviation
    drawn = sample(deviation, count)
    expected = count * mass(deviation, reach)
    seen = np.bincount(drawn + reach, minlength=2 * reach + 1)
    rare = expected < 10
    pool = np.append(expected[~rare], expected[rare].sum())
    statistic, p = stats.chisquare(np.append(seen[~rare], seen[rare].sum()), pool)
    assert p > RARE, statistic


@pytest.mark.parametrize("deviation", [1000, LARGEST])
def test_wide_samples_are_normal(deviation: int) -> None:
    """By Kolmogorov and Smirnov; steps are below what 100,000 samples can tell."""
    drawn = sample(deviation, 100_000) / deviation
    assert stats.kstest(drawn, "norm").pvalue > RARE
    assert abs(np.mean(drawn)) < 5 / math.sqrt(1e5)


def test_uniform_numbers_are_below_their_bounds_and_favor_none() -> None:
    bounds = np.array([1, 2, 3, 2**63 + 1, 2**64 - 1], np.uint64)
    assert (_below(np.repeat(bounds, 1000)) < np.repeat(bounds, 1000)).all()
    drawn = _below(np.full(60_000, 6, np.uint64))
    assert stats.chisquare(np.bincount(drawn, minlength=6)).pvalue > RARE
    # 3/4 of 2^64: a word modulo it would fall into the lower third half of the time.
    bound = 3 * 2**62
    low = (_below(np.full(20_000, bound, np.uint64)) < bound // 3).mean()
    assert abs(low - 1 / 3) < 5 * math.sqrt(2 / 9 / 20_000)


@pytest.mark.parametrize("deviation", [0, -1, LARGEST + 1])
def test_deviations_that_integers_cannot_hold(deviation: int) -> None:
    with pytest.raises(UserError, match="from 1 to 2\\^24"):
        sample(deviation, 1)


CODEC = FixedPoint(limit=4.0, bits=20)  # 2^17 steps to 1.0


def noise(**changed: object) -> DistributedNoise:
    return DistributedNoise(
        **{"codec": CODEC, "size": 1, "clip": 1.0, "deviation": 1, "summands": 1} | changed
    )


@pytest.mark.parametrize("deviation, summands", [(1, 1), (1, 2), (1, 5), (2, 3)])
def test_divergences_are_below_the_theorem_s(deviation: int, summands: int) -> None:
    """Of the convolved mass of the noise, and of the same moved by a client's integer, exactly."""
    x = np.arange(-90, 91)  # an order of 8 looks 8·3 steps away, a sum's deviation is below 4
    one = -(x**2) / (2 * deviation**2)
    one = total = one - np.logaddexp.reduce(one)
    for _ in range(summands - 1):
        padded = np.pad(total, len(x) - 1, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(x))
        total = np.logaddexp.reduce(windows + one, axis=1)
    for steps, order in itertools.product((1, 2, 3), (2.0, 3.5, 8.0)):
        terms = order * total[steps:] + (1 - order) * total[:-steps]
        exact = np.logaddexp.reduce(terms) / (order - 1)
        (bound,) = divergence(np.array([order]), steps, steps, 1, deviation, summands)
        assert exact <= bound * (1 + 1e-9)
        # Nor is the bound far off: τ is 0.03 at most.
        assert exact >= order / 2 * steps**2 / (summands * deviation**2) * 0.98


def test_the_epsilon_of_one_is_that_of_dp_accounting() -> None:
    """One client in one dimension: PLD of the discrete Gaussian is the truth, RDP a bound that is
    at most 15 % above it here."""
    codec = FixedPoint(limit=4095.0, bits=13)
    model = noise(codec=codec, clip=100.0, deviation=250)
    delta, moved = 1e-5, math.ceil(model.sensitivity)
    exact = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        250, moved, value_discretization_interval=1e-3
    ).get_epsilon_for_delta(delta)
    assert exact * 0.99 <= model.epsilon(delta) <= 1.15 * exact
    four = model.epsilon(delta, sums=4)
    assert 2 * 0.9 <= four / model.epsilon(delta) <= 2 * 1.2  # about √4, with its square besides


def test_shares_of_noise_are_as_private_as_one_of_their_variance() -> None:
    """Of many steps, where τ is nothing; of few it is not."""
    many = noise(size=1000, deviation=10**5, summands=25)
    alone = noise(size=1000, deviation=5 * 10**5, summands=1)
    assert inflation(10**5, 25) == 0
    assert many.epsilon(1e-6) == pytest.approx(alone.epsilon(1e-6))
    by_hand = 10 * (math.exp(-(math.pi**2)) + math.exp(-4 / 3 * math.pi**2))
    assert inflation(1, 3) == pytest.approx(by_hand)


def test_rounding_keeps_the_norm_and_the_mean() -> None:
    """Many small values, where rounding to the nearest would send zeros; means of 400 within 5
    standard deviations, of half a step at most each."""
    model = noise(codec=FixedPoint(4.0, 10), size=400, clip=1.0)
    values = np.full(400, 0.05)  # of norm 1; 3.2 steps
    drawn = np.stack([model._rounded(values * model.codec.scale) for _ in range(400)])
    assert np.linalg.norm(drawn, axis=1).max() <= model.sensitivity
    assert model.sensitivity < 64 + 20  # the second bound, below c·s + √d
    assert abs(drawn.mean() - 3.2) < 5 * 0.5 / 400
    assert set(np.unique(drawn)) == {3, 4}


def test_what_is_privatized_is_clipped_and_noisy() -> None:
    model = noise(size=5000, deviation=3000)
    values = np.zeros(5000)
    values[0] = 70.0
    sent = model.privatize(values).view(np.int32).astype(float)
    assert abs(sent[0] - CODEC.scale) < 6 * 3000 + 1
    assert np.std(sent[1:]) == pytest.approx(3000, rel=5 / math.sqrt(2 * 5000))
    for bad in (np.nan, np.inf):
        with pytest.raises(NotFinite):
            model.privatize(np.full(3, bad))


def test_calibration_meets_epsilon_and_not_one_step_less_does() -> None:
    model = calibrated(CODEC, 1000, 1.0, summands=20, epsilon=2.0, delta=1e-6, sums=10)
    assert model.epsilon(1e-6, 10) <= 2.0
    less = noise(size=1000, deviation=model.deviation - 1, summands=20)
    assert less.epsilon(1e-6, 10) > 2.0
    # Beside the Gaussian mechanism of the same sensitivity in zCDP: ρ = 10·Δ²/(2·n·σ²).
    rho = 10 * model.sensitivity**2 / (2 * 20 * model.deviation**2)
    assert model.epsilon(1e-6, 10) <= rho + 2 * math.sqrt(rho * math.log(1e6))


@pytest.mark.parametrize(
    "words, error, make",
    [
        ("limit of 1.000", UserError, lambda: noise(codec=FixedPoint(1.0, 20))),
        ("all have to be above 0", UserError, lambda: noise(summands=0)),
        ("all have to be above 0", UserError, lambda: noise(beta=1.0)),
        (
            "more than 2\\^24 steps",
            UserError,
            lambda: calibrated(FixedPoint(4.0, 31), 10, 1.0, 3, epsilon=0.01, delta=1e-9),
        ),
        (
            "beside noise",
            RingOverflow,
            lambda: calibrated(FixedPoint(4.0, 25), 10, 1.0, 120, epsilon=0.4, delta=1e-9),
        ),
    ],
)
def test_noise_that_cannot_be(words: str, error: type, make: object) -> None:
    with pytest.raises(error, match=words):
        make()


def test_a_secure_sum_with_noise_has_the_noise_of_those_who_stayed() -> None:
    """Six of seven clients; the deviation of 20,000 values is √6·σ within 5 standard errors."""
    size = 20_000
    model = noise(codec=FixedPoint(4.0, 24), size=size, deviation=40_000, summands=6)
    values = np.random.default_rng(0).normal(size=(7, size))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    model.codec.check(7, noise=40_000 * math.sqrt(7))
    integers = np.stack([model.privatize(each) for each in values])
    outcome = simulate(a_round(7, 4, size=size), identities(7), integers, {2: 2})
    error = (model.codec.decode(outcome.total) - np.delete(values, 2, 0).sum(0)) * model.codec.scale
    assert np.std(error) == pytest.approx(math.sqrt(6) * 40_000, rel=5 / math.sqrt(2 * size))
    assert abs(np.mean(error)) < 5 * math.sqrt(6) * 40_000 / math.sqrt(size)
