"""Examples with what teachers say of each: the data of distillation and of PATE."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from research.data.dataset import Example, Source, one, read_rows


class Taught:
    """The examples of a source, with leaves by a teacher: `soft`, a probability a class, or
    `targets` in the place of its own.

    `answers()` gives those of all examples, [examples, ...]; it is asked when one is first read.
    """

    def __init__(self, source: Source, answers: Callable[[], Example]):
        self._source, self._answers = source, answers

    @cached_property
    def _told(self) -> Example:
        return self._answers()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    def rows(self, indexes: np.ndarray) -> Example:
        """As of the source, and what the teacher says of them."""
        told = {name: leaf[indexes] for name, leaf in self._told.items()}
        return read_rows(self._source, indexes) | told
