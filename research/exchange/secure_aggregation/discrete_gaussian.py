"""Exact samples of the discrete Gaussian, from a cryptographic generator and in integers only.

Canonne, Kamath, Steinke 2020, *The Discrete Gaussian for Differential Privacy*, arXiv:2004.00010:

    N_Z(0, σ²):  P[X = x] ∝ exp(-x² / 2σ²),  x an integer

Alg. 1  Bernoulli(exp(-γ)), γ ≤ 1: the first K ≥ 1 at which Bernoulli(γ/K) fails is odd;
        for γ > 1 that of the fraction and ⌊γ⌋ times that of 1
Alg. 2  discrete Laplace of scale t: U uniform below t, kept with exp(-U/t); V counts how often
        exp(-1) succeeds; ±(U + t·V), where -0 is drawn again
Alg. 3  Y discrete Laplace, kept with exp(-(|Y| - σ²/t)² / 2σ²)

Any t is right, and t = σ keeps every fraction one of 64-bit integers: for σ a whole number up to
2^24 of steps. Samples are drawn side by side; each is the one that the algorithm would draw alone.
No floating-point number decides anything, so none can leak or round (Mironov 2012).
"""

import math
import secrets

import numpy as np

from research.errors import UserError

LARGEST = 2**24


def sample(deviation: int, count: int) -> np.ndarray:
    """`count` samples, int64, of N_Z(0, deviation²): about a microsecond each or two."""
    if not 1 <= deviation <= LARGEST:
        raise UserError(
            f"noise of {deviation} steps of the ring: take a whole number from 1 to 2^24 "
            "(more bits a value make smaller steps)"
        )
    kept: list[np.ndarray] = [np.zeros(0, np.int64)]
    while (missing := count - sum(map(len, kept))) > 0:
        y = _laplace(deviation, math.ceil(1.4 * missing) + 8)
        off = (np.abs(y) - deviation).astype(np.int64)
        numerator = (off * off).astype(np.uint64)
        kept.append(y[_bernoulli_exp(numerator, np.uint64(2 * deviation**2))])
    return np.concatenate(kept)[:count]


def _laplace(scale: int, attempts: int) -> np.ndarray:
    """What of so many attempts at a discrete Laplace of whole `scale` is kept."""
    u = _below(np.full(attempts, scale, np.uint64))
    u = u[_bernoulli_exp(u, np.uint64(scale))]
    v = np.zeros(len(u), np.int64)
    going = np.arange(len(u))
    while len(going):
        going = going[_bernoulli_exp(np.ones(len(going), np.uint64), np.uint64(1))]
        v[going] += 1
    magnitude = u.astype(np.int64) + scale * v
    negative = _below(np.full(len(u), 2, np.uint64)).astype(bool)
    drawn = np.where(negative, -magnitude, magnitude)
    return drawn[~(negative & (magnitude == 0))]


def _bernoulli_exp(numerator: np.ndarray, denominator: np.uint64) -> np.ndarray:
    """Bernoulli(exp(-numerator / denominator)), bool [n], of uint64."""
    whole, rest = np.divmod(numerator, denominator)
    success = _bernoulli_exp_of_fraction(rest, denominator)
    going = np.flatnonzero(success & (whole > 0))
    while len(going):
        ones = np.ones(len(going), np.uint64)
        succeeded = _bernoulli_exp_of_fraction(ones, np.uint64(1))
        success[going[~succeeded]] = False
        whole[going] -= np.uint64(1)
        going = going[succeeded & (whole[going] > 0)]
    return success


def _bernoulli_exp_of_fraction(numerator: np.ndarray, denominator: np.uint64) -> np.ndarray:
    success = np.zeros(len(numerator), bool)
    going, k = np.arange(len(numerator)), 1
    while len(going):
        bound = np.full(len(going), denominator * np.uint64(k), np.uint64)
        again = _below(bound) < numerator[going]
        success[going[~again]] = k % 2 == 1
        going, k = going[again], k + 1
    return success


def _below(bounds: np.ndarray) -> np.ndarray:
    """Uniform from 0 to `bounds` - 1, uint64 [n]: words that would favor some are drawn again."""
    result = np.zeros(len(bounds), np.uint64)
    # The largest multiple of a bound that 64 bits hold, less 1.
    last = ~((~bounds + np.uint64(1)) % bounds)
    going = np.arange(len(bounds))
    while len(going):
        words = np.frombuffer(secrets.token_bytes(8 * len(going)), np.uint64)
        fits = words <= last[going]
        result[going[fits]] = words[fits] % bounds[going[fits]]
        going = going[~fits]
    return result
