"""Examples from outside of a distribution: what a model should say that it does not know.

Permuted: the inputs of every example in an order of its own, so that each value is as it was and
nothing else is. CIFAR-10: its images in gray, in the size and the range of the data's own.
"""

from typing import Literal

import numpy as np

from research.data.dataset import Example, LabeledArrays, Source, one, read_rows
from research.data.images import ImagesConfig
from research.errors import UserError

Outside = Literal["none", "permuted", "cifar10_5k"]
SEED = 0
"""Of the permutations: the same for whatever is tested by them."""


def outside(test: Source, kind: Outside) -> Source:
    """Examples outside of the distribution of `test`, labels of no meaning among them.

    Raises UserError where `test` has nothing to permute, or is no set of images of 1 channel.
    """
    if kind == "permuted":
        return Permuted(test)
    if not isinstance(test, LabeledArrays) or test.inputs.shape[1:][-1:] != (1,):
        raise UserError(
            "images of CIFAR-10 in gray are outside of what digits and mnist have, and of no other "
            "set: use --ensemble.outside permuted"
        )
    images = ImagesConfig(name="cifar10_5k").load().test
    assert isinstance(images, LabeledArrays)
    gray = images.inputs.mean(axis=-1) / 255 * test.inputs.max()  # [examples, 32, 32]
    height, width = test.inputs.shape[1:3]
    rows, columns = (np.arange(size) * 32 // size for size in (height, width))
    inputs = gray[:, rows][:, :, columns, None].astype(test.inputs.dtype)
    count = min(len(inputs), len(test))
    return LabeledArrays(inputs[:count], images.targets[:count], test.mean, test.standard_deviation)


class Permuted:
    """The examples of a source, each with its inputs in an order of its own."""

    def __init__(self, source: Source):
        if not np.issubdtype(source[0]["inputs"].dtype, np.floating):
            raise UserError(
                "tokens in another order are text still: use --ensemble.outside none for text"
            )
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    def rows(self, indexes: np.ndarray) -> Example:
        """As `LabeledArrays.rows`."""
        read = read_rows(self._source, indexes)
        inputs = read["inputs"].reshape(len(indexes), -1).copy()
        for row, index in enumerate(indexes):
            draw = np.random.Generator(np.random.Philox([SEED, int(index)]))
            inputs[row] = draw.permutation(inputs[row])
        return read | {"inputs": inputs.reshape(read["inputs"].shape)}
