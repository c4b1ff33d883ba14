"""Numbers in the ring of integers modulo 2^32, where masks are uniform and sums are exact.

Bonawitz et al. 2017, *Practical Secure Aggregation for Privacy-Preserving Machine Learning*,
eprint 2017/281, §4 (inputs in Z_R). With values of b bits, |x| ≤ L and a scale s, a power of two,

    s = 2^⌊log2((2^(b-1) - 1) / L)⌋        encode(x) = round(s·x) mod 2^32
    decode(z) = (z as a signed integer) / s

where round is to the nearest, ties to even. A power of two multiplies a float32 exactly, so NumPy
and XLA agree on every bit, and the sum in the ring is the sum of the rounded values whatever the
order. It is off by at most n/(2·s) for n values. Nothing wraps as long as

    n·(2^(b-1) - 1) + 12·σ < 2^31,

for which b + log2 n ≤ 32 is enough where no noise is added (σ: the standard deviation of the sum's,
in steps of 1/s; a discrete Gaussian passes 12 σ with probability 2·exp(-72) < 2^-102).
"""

import math
from dataclasses import dataclass

import numpy as np

from research.errors import UserError
from research.exchange.secure_aggregation.errors import NotFinite, OutOfRange, RingOverflow

RING_BITS = 32
TAIL = 12
"""Standard deviations of noise for which there has to be room."""


@dataclass(frozen=True)
class FixedPoint:
    """Values of at most `limit` in magnitude as integers of `bits` bits, the sign included."""

    limit: float
    bits: int = 20

    def __post_init__(self) -> None:
        if not 2 <= self.bits < RING_BITS:
            raise UserError(f"{self.bits} bits a value: take 2 to {RING_BITS - 1}, such as 20")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise UserError(f"a limit of {self.limit}: values need a finite one above 0")
        if not -100 <= self._exponent <= 100:
            raise UserError(
                f"a limit of {self.limit:g} needs a scale of 2^{self._exponent}, beyond what "
                "float32 multiplies exactly: give values and limit in another unit"
            )

    @property
    def largest(self) -> int:
        """The largest magnitude of an encoded value."""
        return 2 ** (self.bits - 1) - 1

    @property
    def scale(self) -> float:
        """Steps of the ring in 1.0: a power of two."""
        return 2.0**self._exponent

    @property
    def bound(self) -> np.float32:
        """The largest float32 that is no larger than the limit."""
        nearest = np.float32(self.limit)
        return (
            nearest if nearest <= np.float64(self.limit) else np.nextafter(nearest, np.float32(0))
        )

    @property
    def _exponent(self) -> int:
        return math.floor(math.log2(self.largest / self.limit))

    def room(self, noise: float = 0.0) -> int:
        """How many values can be added and never wrap, beside noise of a standard deviation of
        `noise` steps in their sum."""
        return max(int((2 ** (RING_BITS - 1) - 1 - TAIL * noise) // self.largest), 0)

    def check(self, count: int, noise: float = 0.0) -> None:
        """Raises RingOverflow where a sum of `count` values may not fit into the ring."""
        if count <= (room := self.room(noise)):
            return
        beside = f" beside noise of {noise:.4g} steps" if noise else ""
        fits = RING_BITS - max(count - 1, 1).bit_length()
        raise RingOverflow(
            f"a sum of {count} values of {self.bits} bits{beside} does not fit into "
            f"{RING_BITS} bits, which hold {room}: take {fits} bits or fewer"
            + (", or less noise" if noise else "")
        )

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Float32 [...] as uint32 [...].

        Raises NotFinite or OutOfRange, with the numbers: clip before.
        """
        values = np.asarray(values, np.float32)
        finite = np.isfinite(values)
        if not finite.all():
            raise NotFinite(
                f"{np.sum(~finite)} of {values.size} values are not finite: nothing was sent"
            )
        magnitudes = np.abs(values)
        largest = np.max(magnitudes, initial=0)
        if largest > self.bound:
            many = int(np.sum(magnitudes > self.bound))
            raise OutOfRange(
                f"{many} of {values.size} values are beyond ±{self.limit:g}, the largest "
                f"{largest:g}: clip them before, or raise the limit; nothing was sent"
            )
        return np.rint(values * np.float32(self.scale)).astype(np.int32).view(np.uint32)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """Uint32 [...], a sum of encoded values, as float64 [...], exactly."""
        return np.asarray(total, np.uint32).view(np.int32) / self.scale
