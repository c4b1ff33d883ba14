"""Differential privacy of a secure sum, by noise that every client adds inside the ring.

Kairouz, Liu, Steinke 2021, *The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation*, arXiv:2102.06387. Client i of n has x_i in d dimensions; in steps of the codec
(of s to 1.0), with c the norm that values are clipped to and σ the deviation of a client's noise:

    z_i = round(s · clip_c(x_i)) + N_Z(0, σ²)^d  mod 2^32            (Alg. 1, without its rotation)
    round: each value up or down at random, drawn again until the norm is at most Δ (def. of §4)
    Δ² = min{ (c·s + √d)²,  c²s² + d/4 + √(2·ln(1/β)) · (c·s + √d/2) }                     (thm. 1)
    τ  = 10 · Σ_{k=1}^{n-1} exp(-2π²·σ²·k/(k+1))        how far n discrete Gaussians are from one
    D_α ≤ min{ α/2·Δ²/nσ² + τ·d,  α/2·(Δ²/nσ² + 2·τ·Δ₁/√n·σ + τ²·d),  α/2·(Δ/√n·σ + τ·√d)² }
                                                                                       (prop. 14)

D_α is the Rényi divergence of order α between the sums with a client and with zeros in its place;
any of the three bounds it. Δ₁ ≤ min(√d·Δ, Δ²), since they are integers. n counts those whose noise
is surely in the sum and unknown to who looks: the fewest survivors less the accomplices. The paper
rotates values so that a small ring will do; here it has room for n·c in every value.

There is no credit for sampling clients: the server, which is whom this protects from, chooses them.
"""

import math
import secrets
from dataclasses import dataclass

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant

from research.errors import UserError
from research.exchange.secure_aggregation import discrete_gaussian
from research.exchange.secure_aggregation.errors import NotFinite
from research.exchange.secure_aggregation.fixed_point import FixedPoint

ORDERS = np.concatenate([np.linspace(1.1, 10.9, 99), np.arange(11, 129), 2.0 ** np.arange(8, 15)])


@dataclass(frozen=True)
class DistributedNoise:
    """Of values in `size` dimensions, clipped to an L2 norm of `clip`."""

    codec: FixedPoint
    size: int
    clip: float
    deviation: int
    """σ: of one client's noise, in steps of the ring."""
    summands: int
    """n: clients whose noise is surely in the sum and unknown."""
    beta: float = math.exp(-0.5)
    """β: how seldom the bound Δ may refuse a rounding."""

    def __post_init__(self) -> None:
        if self.clip + 1 / self.codec.scale > self.codec.limit:
            raise UserError(
                f"values clipped to {self.clip:g} and rounded up do not stay below the codec's "
                f"limit of {self.codec.limit:g}: give a limit of "
                f"{self.clip + 2 / self.codec.scale:.8g}"
            )
        if not (0 < self.beta < 1 and self.clip > 0 and self.summands > 0 and self.size > 0):
            raise UserError(
                f"noise of {self.summands} clients on {self.size} values of norm {self.clip:g} "
                f"with β = {self.beta:g}: all have to be above 0, and β below 1"
            )

    @property
    def sensitivity(self) -> float:
        """Δ: the largest norm of what a client adds before noise, in steps."""
        norm, root = self.clip * self.codec.scale, math.sqrt(self.size)
        spread = math.sqrt(2 * math.log(1 / self.beta)) * (norm + root / 2)
        return min(norm + root, math.sqrt(norm**2 + self.size / 4 + spread))

    def rdp(self, orders: np.ndarray) -> np.ndarray:
        """The Rényi divergence of each order α > 1, of one sum."""
        l2 = self.sensitivity
        l1 = min(math.sqrt(self.size) * l2, l2**2)
        return divergence(orders, l1, l2, self.size, self.deviation, self.summands)

    def epsilon(self, delta: float, sums: int = 1) -> float:
        """ε of so many sums, by RDP; a client's values or zeros in their place."""
        rdp = sums * self.rdp(ORDERS)
        epsilon, _ = rdp_privacy_accountant.compute_epsilon(ORDERS, rdp, delta)
        return float(epsilon)

    def privatize(self, values: np.ndarray) -> np.ndarray:
        """What a client adds to the sum: float [size] as uint32 [size].

        Raises NotFinite where a value is not.
        """
        values = np.asarray(values, np.float64)
        norm = float(np.linalg.norm(values))
        if not math.isfinite(norm):
            raise NotFinite(f"the norm of {values.size} values is {norm}: nothing was sent")
        scaled = values * (min(1.0, self.clip / norm) if norm else 1.0) * self.codec.scale
        noise = discrete_gaussian.sample(self.deviation, values.size)
        return (self._rounded(scaled) + noise).astype(np.uint32)

    def _rounded(self, scaled: np.ndarray) -> np.ndarray:
        """Int64 [size], of a norm of at most Δ."""
        lower = np.floor(scaled)
        while True:
            words = np.frombuffer(secrets.token_bytes(4 * scaled.size), np.uint32)
            rounded = (lower + (words < (scaled - lower) * 2.0**32)).astype(np.int64)
            if math.sqrt(float(rounded @ rounded)) <= self.sensitivity:
                return rounded


def divergence(
    orders: np.ndarray, l1: float, l2: float, size: int, deviation: int, summands: int
) -> np.ndarray:
    """D_α (prop. 14) of integers that move by norms of `l1` and `l2` under the noise of so many."""
    total, root = deviation * math.sqrt(summands), math.sqrt(size)
    tau = inflation(deviation, summands)
    half, one, two = np.asarray(orders, float) / 2, l1 / total, l2 / total
    return np.minimum.reduce(
        [
            half * two**2 + tau * size,
            half * (two**2 + 2 * tau * one + tau**2 * size),
            half * (two + tau * root) ** 2,
        ]
    )


def inflation(deviation: int, summands: int) -> float:
    """τ: how far the sum of so many discrete Gaussians may be from one, a dimension."""
    exponent = -2 * math.pi**2 * deviation**2
    return 10 * math.fsum(math.exp(exponent * k / (k + 1)) for k in range(1, summands))


def calibrated(
    codec: FixedPoint,
    size: int,
    clip: float,
    summands: int,
    epsilon: float,
    delta: float,
    sums: int = 1,
) -> DistributedNoise:
    """With the smallest deviation whose ε, of so many sums, is at most `epsilon`.

    Raises UserError where none is, and RingOverflow where it does not fit beside the values.
    """

    def of(deviation: int) -> DistributedNoise:
        return DistributedNoise(codec, size, clip, deviation, summands)

    low, high = 0, 1
    while of(high).epsilon(delta, sums) > epsilon:
        low, high = high, 2 * high
        if high > discrete_gaussian.LARGEST:
            raise UserError(
                f"ε = {epsilon:g} takes noise of more than 2^24 steps a client: take fewer bits a "
                "value, more clients, or a larger ε"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle).epsilon(delta, sums) > epsilon else (low, middle)
    codec.check(summands, noise=high * math.sqrt(summands))
    return of(high)
