"""Which examples belong to which client: two arrays, however many clients there are."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

NOBODY = -1
"""The owner of an example that is with no client."""


@dataclass(frozen=True, eq=False)
class Clients:
    """The examples of a split, client after client, and what labels each client has."""

    names: tuple[str, ...]
    """Of the clients."""
    offsets: np.ndarray
    """int64 `[clients + 1]`, from 0."""
    indexes: np.ndarray
    """int64 `[assigned]`: the examples of client `c` are `indexes[offsets[c]:offsets[c + 1]]`,
    ascending."""
    histogram: np.ndarray
    """int64 `[clients, classes]`: examples of each label; for text, targets of each token."""
    examples: int
    """Of the split: more than `assigned` where small clients were left out."""

    @classmethod
    def of(
        cls, owners: np.ndarray, labels: np.ndarray, classes: int, names: tuple[str, ...]
    ) -> "Clients":
        """From the client of each example, `owners` integer `[examples]`, or NOBODY.

        `labels` is `[examples]`, or `[examples, ...]` where an example has many (text); values are
        below `classes`.
        """
        if len(owners) != len(labels):
            raise ValueError(f"{len(owners)} owners and {len(labels)} labels")
        assigned = np.flatnonzero(owners != NOBODY)
        mine = owners[assigned].astype(np.int64)
        sizes = np.bincount(mine, minlength=len(names))
        each = labels[assigned].reshape(len(assigned), math.prod(labels.shape[1:]))
        cells = mine[:, None] * classes + each
        return cls(
            names=names,
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            indexes=assigned[np.argsort(mine, kind="stable")],
            histogram=np.bincount(cells.ravel(), minlength=len(names) * classes).reshape(
                len(names), classes
            ),
            examples=len(owners),
        )

    def __len__(self) -> int:
        """How many clients there are."""
        return len(self.names)

    def __getitem__(self, client: int, /) -> np.ndarray:
        """int64 `[size]`: the examples of `client`, ascending."""
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return self.indexes[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """int64 `[clients]`: examples of each."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """int64 `[examples]`: the client of each example, or NOBODY."""
        owners = np.full(self.examples, NOBODY, np.int64)
        owners[self.indexes] = np.repeat(np.arange(len(self)), self.sizes)
        return owners

    @cached_property
    def digest(self) -> str:
        """sha256 (hexadecimal) of who has which example: equal for equal assignments only."""
        digest = hashlib.sha256(f"{len(self)} {self.examples}\n".encode())
        digest.update(self.offsets.astype("<i8").tobytes())
        digest.update(self.indexes.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def distances(self) -> np.ndarray:
        """float64 `[clients]`: total variation between each client's labels and those of all.

        `1/2 sum_y |p_k(y) - p(y)|`: half of what Zhao et al. 2018 (arXiv 1806.00582) call
        the earth mover's distance; the share of a client's labels that would have to change for it
        to be like all. 0 for a client that has none.
        """
        counts = self.histogram.sum(axis=1, keepdims=True)
        own = self.histogram / np.maximum(counts, 1)
        everyone = self.histogram.sum(axis=0) / max(counts.sum(), 1)
        return np.where(counts[:, 0] > 0, np.abs(own - everyone).sum(axis=1) / 2, 0.0)

    @property
    def heterogeneity(self) -> float:
        """Mean of `distances`, weighted by examples: 0 where all clients have the same labels.

        At most 1 - sum_y p(y)^2, where each has one: 0.9 for ten equally frequent labels. Clients
        of n examples drawn at random have about sum_y sqrt(p(y) (1 - p(y)) / (2 pi n)), not 0.
        Clients that differ in their features only show nothing here.
        """
        return float(np.average(self.distances, weights=self.sizes)) if len(self.indexes) else 0.0

    def to_json(self) -> dict[str, Any]:
        """What a run folder keeps: the digest, the sizes, the labels of each client."""
        return {
            "clients": len(self),
            "examples": self.examples,
            "left_out": self.examples - len(self.indexes),
            "digest": self.digest,
            "heterogeneity": self.heterogeneity,
            "names": list(self.names),
            "sizes": self.sizes.tolist(),
            "histogram": self.histogram.tolist(),
        }
