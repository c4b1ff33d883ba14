"""Canaries: training examples that nobody would learn but by heart, each there by a coin's fall.

A canary takes the place of a training example that is drawn by the seed. Its inputs are the
example's own in a shuffled order (features, pixels, or the tokens of a window), and its label is
any other than the example's: in range, and in a direction of its own. One that the coin leaves out
keeps its number, so that how many examples there are, and how likely each is drawn, tells nothing;
where it is drawn its row has a weight of 0.
"""

import hashlib
from dataclasses import replace

import numpy as np

from research.data.cohorts import Draws
from research.data.dataset import Dataset, Example, Source, one, read_rows
from research.errors import UserError

CANARIES = 17
"""What is drawn; other numbers than those of cohorts and private batches."""


class Canaries:
    """A source with canaries in it: its rows have `weights`, float32, of 0 or 1."""

    def __init__(self, source: Source, classes: int, count: int, seed: int):
        """`count` of them, fewer than there are examples, whose labels are below `classes`."""
        draw = Draws(seed).at(CANARIES, 0)
        order = draw.permutation(len(source))
        self._source, self._stand_in = source, int(order[count])
        self.numbers = np.sort(order[:count])
        """int64 [canaries]: the places that they take."""
        self.included = draw.random(count) < 0.5
        """bool [canaries]: how the coins fell."""
        self.contents = _shuffled(read_rows(source, self.numbers), classes, draw)
        """What they are, [canaries, ...], those that were left out too."""
        self._canary = np.full(len(source), -1)
        self._canary[self.numbers] = np.arange(count)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    def rows(self, indexes: np.ndarray) -> Example:
        """As of the source, with what canaries are; where one was left out stands another example,
        with a weight of 0."""
        canary = self._canary[indexes]  # -1 for none
        planted = canary >= 0
        left_out = planted.copy()
        left_out[planted] = ~self.included[canary[planted]]
        planted &= ~left_out
        read = read_rows(self._source, np.where(left_out, self._stand_in, indexes))
        for name, leaf in self.contents.items():
            read[name][planted] = leaf[canary[planted]]
        return read | {"weights": (~left_out).astype(np.float32)}

    def each(self) -> list[Example]:
        """The canaries alone, as a source."""
        many = range(len(self.numbers))
        return [{name: leaf[i] for name, leaf in self.contents.items()} for i in many]


def with_canaries(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`dataset` with so many canaries for training examples. Raises UserError where these would be
    more than half of them."""
    examples = len(dataset.train)
    if count > examples // 2:
        raise UserError(
            f"{count:,} canaries are more than half of {examples:,} training examples: use "
            f"--privacy.canaries {examples // 2} or less"
        )
    canaries = Canaries(dataset.train, dataset.specification.classes, count, seed)
    how = f"{count} canaries {seed}"
    digest = hashlib.sha256((dataset.digest + how).encode()).hexdigest()
    return replace(dataset, train=canaries, digest=digest)


def _shuffled(examples: Example, classes: int, draw: np.random.Generator) -> Example:
    inputs, targets = examples["inputs"], examples["targets"]
    if targets.ndim > 1:  # text: targets are the same tokens one place later
        tokens = draw.permuted(np.concatenate([inputs, targets[:, -1:]], axis=1), axis=1)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    flat = draw.permuted(inputs.reshape(len(inputs), -1), axis=1)
    others = (targets + draw.integers(1, classes, size=len(targets))) % classes
    return {"inputs": flat.reshape(inputs.shape), "targets": others.astype(targets.dtype)}
