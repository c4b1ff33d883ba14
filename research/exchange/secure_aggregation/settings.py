"""What all agree on before a round begins, and what is refused before it does.

With n clients, k neighbors (n - 1: all), shares of every secret at a client itself and its
neighbors, t of which give it away, and sums of at least m clients (eprint 2017/281, §6.2: t > n/2
against an active server; eprint 2020/704, §4):

    m ≥ 3         a sum of 2 protects nobody
    t > (k+1)/2   or two groups of holders could give away one kind of shares each, and so both
    m > n/2       or two lists of survivors could be signed by a quorum each, and the difference of
                  the two sums be read
"""

import secrets
import struct
from dataclasses import dataclass, field
from functools import cached_property

from research.errors import UserError
from research.exchange.secure_aggregation.errors import (
    CohortTooSmall,
    ThresholdTooHigh,
    ThresholdTooLow,
)
from research.exchange.secure_aggregation.keys import KEY_BYTES, digest

SMALLEST_COHORT = 3


@dataclass(frozen=True)
class Round:
    """One secure sum: a client is the place of its identity in `identities`."""

    identities: tuple[bytes, ...]
    """Public keys (Ed25519) of the clients that are asked, by which all know each other."""
    size: int
    """Values of a client."""
    threshold: int
    """Shares that give a secret away (t)."""
    neighbors: int | None = None
    """Of a client (k, even); None: all others."""
    minimum: int | None = None
    """Clients that a sum has at least (m); None: as many as the threshold, or just over half."""
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    """Which round this is: no two have the same."""
    smallest: int = SMALLEST_COHORT
    """What `minimum` may not fall below. Lower than 3 is for showing why not."""

    def __post_init__(self) -> None:
        count, least, holders = len(self.identities), self.least, self.holders
        if least < self.smallest or count < self.smallest:
            raise CohortTooSmall(
                f"a secure sum of {min(least, count)}: take at least {self.smallest} clients. Of "
                "2, each subtracts its own and has the other's, and a sum of two gradients still "
                "shows the records behind them"
            )
        if 2 * self.threshold <= holders:
            raise ThresholdTooLow(
                f"{self.threshold} of {holders} holders of its shares could unmask a client, and "
                f"as many others give the server its other secret: take at least {holders // 2 + 1}"
            )
        if self.threshold > holders:
            raise ThresholdTooHigh(
                f"{self.threshold} shares of each secret, which {holders} clients hold: take at "
                f"most {holders}"
            )
        if 2 * least <= count:
            raise ThresholdTooLow(
                f"sums of {least} of {count} clients: two of them could have different clients, "
                f"and their difference says more than a sum; take at least {count // 2 + 1}"
            )
        if least > count:
            raise ThresholdTooHigh(f"sums of at least {least} clients, of which there are {count}")
        if self.neighbors is not None and (self.neighbors % 2 or self.neighbors < 2):
            raise UserError(
                f"{self.neighbors} neighbors, as many before a client as behind it: take an even "
                "number from 2 on, or none for the complete graph"
            )
        if self.size < 1:
            raise UserError(f"{self.size} values a client: a sum needs one or more")
        if len(set(self.identities)) < count or any(len(i) != KEY_BYTES for i in self.identities):
            raise UserError(f"the {count} identities are not {count} different keys of 32 bytes")

    @property
    def count(self) -> int:
        """Clients that are asked (n)."""
        return len(self.identities)

    @property
    def degree(self) -> int:
        """Neighbors of a client (k), if everybody takes part."""
        everybody = self.count - 1
        return everybody if self.neighbors is None else min(self.neighbors, everybody)

    @property
    def holders(self) -> int:
        """Who holds shares of a client's secrets: itself and its neighbors."""
        return self.degree + 1

    @property
    def least(self) -> int:
        """Clients that a sum has at least (m)."""
        if self.minimum is not None:
            return self.minimum
        return self.threshold if self.holders == self.count else self.count // 2 + 1

    @cached_property
    def digest(self) -> bytes:
        """Of all of this: in every message, signature and key of the round."""
        numbers = (self.size, self.threshold, self.degree, self.least, self.smallest)
        return digest(b"round", self.nonce, struct.pack("<5I", *numbers), *self.identities)
