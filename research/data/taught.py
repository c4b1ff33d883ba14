"""Examples with what a teacher says of each: distillation's data."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from research.data.dataset import Example, Source, one, read_rows


class Taught:
    """The examples of a source, with a leaf `soft`: a probability a class, by a teacher.

    `answers()` gives all of them, float32 [examples, classes]; it is asked when one is first read.
    """

    def __init__(self, source: Source, answers: Callable[[], np.ndarray]):
        self._source, self._answers = source, answers

    @cached_property
    def _soft(self) -> np.ndarray:
        return self._answers()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    def rows(self, indexes: np.ndarray) -> Example:
        """As of the source, and `soft` float32 [rows, classes]."""
        return read_rows(self._source, indexes) | {"soft": self._soft[indexes]}
