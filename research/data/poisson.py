"""Poisson sampling: every example is in the batch of a step, or not, by a coin of its own.

    each of N examples with probability q, anew in every step        E[batch] = q·N

is what the accounting of differential privacy is about (Abadi et al. 2016, arXiv:1607.00133, and
all who followed): that nobody knows whether an example took part. A shuffled epoch is another
distribution, with weaker guarantees, however often it is accounted as this one.

The size of a batch is drawn, and compiled programs want one shape. So there are places for `most`
examples, of which a step uses some, and `weights` are 0 for the rest. Chernoff's bound says how
many places are enough but for a probability of TAIL a step:

    P[n >= m] <= exp(-N·KL(m/N ‖ q)),     KL(p ‖ q) = p·ln(p/q) + (1-p)·ln((1-p)/(1-q))

What is drawn beyond them is left out, at random, and accounted as a failure of that probability.
"""

import math
from collections.abc import Generator, Sequence

import numpy as np

from research.data.batches import PREFETCHED_STEPS, read_ahead
from research.data.cohorts import Draws
from research.data.dataset import Example, Source, read_rows

TAIL = 1e-20
"""Probability, a step, that more is drawn than there are places."""

POISSON, GROUPS = 16, 18
"""What is drawn; other numbers than those of cohorts."""


def places_for(count: int, probability: float, tail: float = TAIL) -> int:
    """The places that `count` examples, each drawn with `probability`, overflow with a probability
    of at most `tail`."""
    least, most = math.floor(count * probability), count
    while least < most:  # the first m for which m + 1 or more are unlikely enough
        middle = (least + most) // 2
        if count * _divergence((middle + 1) / count, probability) >= -math.log(tail):
            most = middle
        else:
            least = middle + 1
    return max(most, 1)


def drawn(count: int, probability: float, seed: int, step: int, most: int) -> np.ndarray:
    """int64 [at most `most`]: which of `count` take part in `step` (from 0); ascending, unless some
    had to be left out."""
    draw = Draws(seed).at(POISSON, step)
    chosen = np.flatnonzero(draw.random(count) < probability)
    return chosen if len(chosen) <= most else draw.permutation(chosen)[:most]


class PoissonBatches:
    """Training batches of random size; the interface is that of `Batches`, with `weights`."""

    def __init__(self, source: Source, probability: float, rows: int, microbatches: int, seed: int):
        """Each example of `source` with `probability`, on `rows` places of a step, in order of the
        `microbatches` that they are cut into: only the last one with an example has room left."""
        self.source = source
        self.probability = probability
        self.count = rows
        self.microbatches = microbatches
        self.seed = seed

    @property
    def examples(self) -> int:
        """Of a mean step."""
        return round(self.probability * len(self.source))

    def indexes(self, step: int) -> np.ndarray:
        """int64 [drawn]: the examples of `step` (from 0)."""
        return drawn(len(self.source), self.probability, self.seed, step, self.count)

    def rows(self, step: int, rows: Sequence[int] | np.ndarray) -> Example:
        """Reads those rows of `step`: every leaf is [len(rows), ...]; `weights` are 1 for an
        example, and 0 for an empty place (where another one stands)."""
        chosen = self.indexes(step)
        # Row i goes to microbatch i mod m (see `into_microbatches`).
        number, place = np.divmod(np.asarray(rows, np.int64), self.microbatches)
        order = place * (self.count // self.microbatches) + number
        weights = (order < len(chosen)).astype(np.float32)
        full = np.append(chosen, 0)
        examples = read_rows(self.source, full[np.minimum(order, len(chosen))])
        # A source has weights of its own where it left something out: an empty place more.
        return {**examples, "weights": weights * examples.get("weights", np.float32(1))}

    def iterate(
        self, start: int, rows: Sequence[int] | np.ndarray
    ) -> Generator[Example, None, None]:
        """The given rows of the steps from `start` on, read ahead by a thread."""
        rows = np.asarray(rows, np.int64)
        return read_ahead(lambda step: self.rows(step, rows), start, PREFETCHED_STEPS)


class BatchesInTurn(PoissonBatches):
    """Batches of examples that come in turn: each belongs to a group, by a draw of its own, and
    step t (from 0) takes group t mod `groups`."""

    def __init__(self, source: Source, groups: int, rows: int, microbatches: int, seed: int):
        super().__init__(source, 1 / groups, rows, microbatches, seed)
        self.groups = groups
        self._group = Draws(seed).at(GROUPS, 0).integers(groups, size=len(source))

    def indexes(self, step: int) -> np.ndarray:
        """int64 [of a group]: the examples of `step` (from 0), but for those beyond all places."""
        return np.flatnonzero(self._group == step % self.groups)[: self.count]


def _divergence(p: float, q: float) -> float:
    """KL(p ‖ q) of two coins; infinite where p > 1, which no share of examples is."""
    if p > 1 or q == 0:
        return math.inf
    if q == 1:
        return 0.0
    rest = 0.0 if p == 1 else (1 - p) * math.log((1 - p) / (1 - q))
    return p * math.log(p / q) + rest
