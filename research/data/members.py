"""What each member of an ensemble learns from, and in which order: a function of (seed, member).

Members have the whole training split, each in an order of its own (Lakshminarayanan, Pritzel and
Blundell 2017, arXiv:1612.01474, §2.4), or bootstrap samples of it (bagging: Breiman 1996, *Bagging
Predictors*), or disjoint parts, as machines have that cannot share their data. A step is read like
a batch with a member in each row: [members, batch, ...]. Member 0 of the whole split has the
batches that a single model of the same seed has.
"""

import hashlib
from collections.abc import Generator, Sequence
from typing import Literal

import numpy as np

from research.data.batches import PREFETCHED_STEPS, Batches, read_ahead
from research.data.dataset import Example, Source, read_rows
from research.errors import UserError

Share = Literal["all", "bagging", "disjoint"]


class Members:
    """The batches of all members; the interface is that of `Batches`."""

    def __init__(self, source: Source, members: int, batch: int, seed: int, share: Share = "all"):
        """`batch` examples a step of each of so many `members`.

        Raises UserError where a member has fewer.
        """
        self.source, self.batch = source, batch
        parts = _parts(len(source), members, seed, share)
        fewest = min(len(part) for part in parts)
        if share == "disjoint" and batch > fewest:
            raise UserError(
                f"{members} disjoint parts of {len(source)} training examples have {fewest} or "
                f"more each: set --data.batch {fewest} or less, or fewer --ensemble.members"
            )
        self._parts = parts
        self._orders = [
            Batches(source if share == "all" else _Part(source, part), batch, own(seed, member))
            for member, part in enumerate(parts)
        ]

    @property
    def examples(self) -> int:
        """Of a step, over all members."""
        return self.batch * len(self._parts)

    def examples_of(self, member: int) -> np.ndarray:
        """int64: the training examples that a member learns from, as often as it has them."""
        return self._parts[member]

    def indexes(self, step: int) -> np.ndarray:
        """int64 [members · batch]: the examples of a step, member by member."""
        return np.concatenate([self._of(member, step) for member in range(len(self._parts))])

    def rows(self, step: int, rows: Sequence[int] | np.ndarray) -> Example:
        """Reads those members' batches of `step`: [rows, batch, ...] each."""
        indexes = np.concatenate([self._of(int(member), step) for member in rows])
        examples = read_rows(self.source, indexes)
        shape = (len(rows), self.batch)
        return {name: leaf.reshape(*shape, *leaf.shape[1:]) for name, leaf in examples.items()}

    def iterate(
        self, start: int, rows: Sequence[int] | np.ndarray
    ) -> Generator[Example, None, None]:
        """Those members' batches of `start`, `start + 1`, ..., read ahead by a thread."""
        rows = np.asarray(rows, np.int64)
        return read_ahead(lambda step: self.rows(step, rows), start, PREFETCHED_STEPS)

    def _of(self, member: int, step: int) -> np.ndarray:
        return self._parts[member][self._orders[member].indexes(step)]


def own(seed: int, member: int) -> int:
    """The seed of a member, unrelated for neighbors; of member 0 `seed` itself."""
    if member == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} member {member}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


class _Part:
    """Some examples of a source, for their number."""

    def __init__(self, source: Source, indexes: np.ndarray):
        self._source, self._indexes = source, indexes

    def __len__(self) -> int:
        return len(self._indexes)

    def __getitem__(self, index: int, /) -> Example:
        return self._source[int(self._indexes[index])]


def _parts(examples: int, members: int, seed: int, share: Share) -> list[np.ndarray]:
    """int64 each: the examples of every member, ascending."""
    if share == "all":
        return [np.arange(examples)] * members
    if share == "disjoint":
        order = np.random.Generator(np.random.Philox(seed)).permutation(examples)
        return [np.sort(order[member::members]) for member in range(members)]
    draws = (np.random.Generator(np.random.Philox(own(seed, m))) for m in range(members))
    return [np.sort(draw.integers(examples, size=examples)) for draw in draws]
