"""Any t of n shares give a secret of 32 bytes, and t - 1 say nothing about it.

Shamir 1979, *How to share a secret*, Communications of the ACM 22(11). Over the integers modulo
p = 2^256 + 297, the smallest prime that 32 bytes fit into,

    f(x) = s + a_1·x + ... + a_{t-1}·x^{t-1},   a_i uniform     share of holder j: f(j + 1)
    s = Σ_j f(x_j)·λ_j,   λ_j = Π_{m ≠ j} x_m / (x_m - x_j)     over any t holders
"""

import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache

from research.exchange.secure_aggregation.errors import WrongShares

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def share(secret: bytes, threshold: int, holders: Iterable[int]) -> dict[int, bytes]:
    """The share (33 bytes) of each holder, any `threshold` of which `reconstruct` needs."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes, where {SECRET_BYTES} are shared")
    # From a_{t-1} down to s.
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "little"))
    shares = {}
    for holder in holders:
        point, value = holder + 1, 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares[holder] = value.to_bytes(SHARE_BYTES, "little")
    return shares


def reconstruct(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the first `threshold` of shares by holder.

    Raises WrongShares where there are fewer, or no 32 bytes have these shares.
    """
    holders = tuple(sorted(shares))[:threshold]
    if len(holders) < threshold:
        raise WrongShares(f"{len(holders)} shares of a secret that takes {threshold}")
    values = [int.from_bytes(shares[holder], "little") for holder in holders]
    if max(values) >= PRIME:
        raise WrongShares("a share is no number below 2^256 + 297")
    weights = _weights(holders)
    secret = sum(value * weight for value, weight in zip(values, weights, strict=True)) % PRIME
    if secret >> 8 * SECRET_BYTES:
        raise WrongShares(f"the shares of holders {_listed(holders)} are of no secret of 32 bytes")
    return secret.to_bytes(SECRET_BYTES, "little")


@lru_cache(maxsize=1024)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """λ of each holder: the same for all secrets that the same holders share."""
    points = [holder + 1 for holder in holders]
    weights = []
    for own in points:
        above = below = 1
        for other in points:
            if other != own:
                above = above * other % PRIME
                below = below * (other - own) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
