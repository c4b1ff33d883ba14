"""Sources of examples, and the data set that three of them make."""

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from research.data.vocabulary import Vocabulary

if TYPE_CHECKING:  # the room of the models imports JAX, and loading data needs none
    from research.models.specification import Specification

Example = dict[str, np.ndarray]
"""`inputs` and `targets` of one example, or of many with a leading axis of rows."""


SPLIT_SEED = 0
"""Of the shuffles that split a set whose publisher did not split it."""


class Source(Protocol):
    """Examples by index.

    A source may also offer `rows(indexes) -> Example`, the same examples stacked, where reading
    many at once is cheaper than one by one; `read_rows` uses it where it is there.
    """

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """The example at `index`; raises `IndexError` outside of 0 to `len(self) - 1`."""
        ...


def read_rows(source: Source, indexes: np.ndarray) -> Example:
    """Reads several examples: every leaf has shape `[len(indexes), ...]`, in the order asked."""
    rows = getattr(source, "rows", None)
    if rows is not None:
        return rows(indexes)
    examples = [source[int(index)] for index in indexes]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


class LabeledArrays:
    """Examples of `inputs` and an integer label, held in memory as stored and scaled when read.

    What is read is `(inputs - mean) / standard_deviation` in float32; so images stay uint8 in
    memory, a quarter of their size as float32.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        mean: np.ndarray | float = 0.0,
        standard_deviation: np.ndarray | float = 1.0,
    ):
        """`inputs` is `[examples, ...]`, `targets` `[examples]`; the two statistics, in the unit
        of `inputs`, broadcast against one example (one value a channel, or a feature)."""
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
        self.inputs = inputs
        self.targets = targets.astype(np.int32)
        # Spread over a whole example: NumPy is ten times slower where its inner loop is 3 channels.
        shape = inputs.shape[1:]
        self.mean, self.standard_deviation = mean, standard_deviation
        self._mean = np.broadcast_to(mean, shape).astype(np.float32)
        self._scale = (1.0 / np.broadcast_to(standard_deviation, shape)).astype(np.float32)

    def with_inputs(self, inputs: np.ndarray, targets: np.ndarray | None = None) -> "LabeledArrays":
        """The same statistics with other `inputs`, of the same shape and unit, and `targets` if
        there are others."""
        labels = self.targets if targets is None else targets.astype(np.int32)
        if inputs.shape != (len(labels), *self.inputs.shape[1:]):
            raise ValueError(f"inputs {inputs.shape} in place of {self.inputs.shape}")
        other = copy(self)
        other.inputs, other.targets = inputs, labels
        return other

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    def rows(self, indexes: np.ndarray) -> Example:
        """`inputs` float32 `[rows, ...]` and `targets` int32 `[rows]`."""
        inputs = np.subtract(self.inputs[indexes], self._mean, dtype=np.float32)
        inputs *= self._scale
        return {"inputs": inputs, "targets": self.targets[indexes]}


def one(source: Any, index: int) -> Example:
    """The example at `index` of a source that has `rows`; raises `IndexError` outside of it."""
    if not 0 <= index < len(source):
        raise IndexError(f"example {index} of {len(source)}")
    return {name: leaf[0] for name, leaf in source.rows(np.array([index])).items()}


@dataclass(frozen=True)
class NaturalClients:
    """Whose each example is, where the data has owners of its own: hospitals, roles of a play."""

    names: tuple[str, ...]
    """Of the clients, in the order of their numbers."""
    train: np.ndarray
    """int64 `[examples]`: the client of each training example; so for the other splits."""
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """What a run learns from, and is measured on."""

    name: str
    train: Source
    validation: Source
    test: Source
    """The validation source where the set has no other; `test_is_validation` then says so."""
    specification: "Specification"
    """The shapes that the data asks of a model."""
    unit: Literal["tokens", "examples"]
    """What throughput counts."""
    vocabulary: Vocabulary | None
    """How text became tokens; None for images and tables."""
    digest: str
    """sha256 (hexadecimal) of what was loaded: a resumed run tells by it that the data changed."""
    test_is_validation: bool = False
    columns: tuple[str, ...] = ()
    """Names of a table's features, in order; empty for images and text."""
    clients: NaturalClients | None = None
    """The data set's own clients, if it has any."""


def split_by_permutation(
    examples: int, validation: float, test: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indexes of train, validation and test examples, each a fraction of a fixed shuffle.

    The generator is NumPy's `RandomState`, whose streams are frozen (NEP 19), so that a split
    stays the same on every version of NumPy.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(examples)
    held_out = round(examples * validation), round(examples * test)
    train = examples - sum(held_out)
    return order[:train], order[train : train + held_out[0]], order[train + held_out[0] :]
