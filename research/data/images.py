"""Labeled images: scikit-learn's digits, MNIST, CIFAR-10 and its first 5,000 images.

Images stay uint8 in memory; read, they are float32 `[height, width, channels]`, standardized with
one mean and one standard deviation a channel.
"""

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from research.data.dataset import Dataset, LabeledArrays, split_by_permutation
from research.data.download import PublishedFile, find, packaged
from research.errors import UserError

if TYPE_CHECKING:
    from research.models.specification import Specification

# Mean and standard deviation of the training pixels, a channel, with the brightest pixel at 1. Of
# MNIST and CIFAR-10 the numbers that the field uses, of digits those of its training split here.
STATISTICS = {
    "digits": ([0.3057], [0.3767]),
    "mnist": ([0.1307], [0.3081]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
}

# LeCun, Cortes and Burges. Their own site has refused downloads for years; this mirror is the one
# that PyTorch keeps. A file passes by the digest of the IDX data in it, however it is packed.
_MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = [
    PublishedFile(name, sha256, _MNIST_MIRROR + name, unpacked_sha256)
    for name, sha256, unpacked_sha256 in [
        (
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ]
]
# The publisher's binary version: its Python version is pickle, which runs what it says.
CIFAR10 = PublishedFile(
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)
CIFAR10_5K = PublishedFile(
    "cifar10_train5k_test1k.npz",
    "06a1d7319c3409f09cf76cbbda7c5bede82c079c63b2a6cd73e2398c1e9b4eb2",
)
_DIGITS = ("sklearn", "datasets/data/digits.csv.gz")
_DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"

Split = tuple[np.ndarray, np.ndarray]
"""Images uint8 `[examples, height, width, channels]` and labels uint8 `[examples]`."""


@dataclass(frozen=True)
class ImagesConfig:
    """Images and the label of each."""

    name: Literal["digits", "mnist", "cifar10", "cifar10_5k"] = "digits"
    """Which images: digits needs no download; cifar10_5k, the first 5,000 training and 1,000 test
    images of CIFAR-10, is looked for in $RESEARCH_DATA only."""
    batch: int = 64
    """Images a step, over all devices."""
    hold_out: bool = True
    """Hold out training images for validation. Without, all of them train (60,000 of mnist, as
    papers of federated learning count them), and the test images validate."""

    def specification(self) -> "Specification":
        """The shapes of the images; reads none."""
        from research.models.specification import Specification  # imports JAX

        shape = {"digits": (8, 8, 1), "mnist": (28, 28, 1)}.get(self.name, (32, 32, 3))
        return Specification(shape=shape, classes=10)

    def load(self) -> Dataset:
        """The images in memory; raises `UserError` where they cannot be had or are not whole.

        Examples for training, validation and test: digits 1,437, 180 and 180 of a fixed shuffle;
        mnist 55,000, the last 5,000 and 10,000; cifar10 45,000, the last 5,000 and 10,000;
        cifar10_5k 4,500, the last 500 and 1,000. Without `hold_out` those for validation train as
        well.
        """
        train, validation, test, white = {
            "digits": _digits,
            "mnist": _mnist,
            "cifar10": _cifar10,
            "cifar10_5k": _cifar10_5k,
        }[self.name]()
        statistics = STATISTICS["cifar10" if self.name == "cifar10_5k" else self.name]
        mean, standard_deviation = (np.array(values) * white for values in statistics)
        if not self.hold_out:
            images, labels = map(np.concatenate, zip(train, validation, strict=True))
            train, validation = (images, labels), test
        digest = hashlib.sha256()
        for images, labels in (train, validation, test):
            digest.update(np.ascontiguousarray(images).data)
            digest.update(np.ascontiguousarray(labels).data)
        return Dataset(
            name=self.name,
            train=LabeledArrays(*train, mean, standard_deviation),
            validation=LabeledArrays(*validation, mean, standard_deviation),
            test=LabeledArrays(*test, mean, standard_deviation),
            test_is_validation=not self.hold_out,
            specification=self.specification(),
            unit="examples",
            vocabulary=None,
            digest=digest.hexdigest(),
        )


def _digits() -> tuple[Split, Split, Split, int]:
    """1,797 digits of 8×8 pixels from 0 to 16 (Alpaydin and Kaynak 1998, UCI)."""
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(packaged(*_DIGITS, _DIGITS_SHA256))), delimiter=","
    )
    images = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.uint8)
    train, validation, test = split_by_permutation(len(images), validation=0.1, test=0.1)
    parts = [(images[part], labels[part]) for part in (train, validation, test)]
    return parts[0], parts[1], parts[2], 16


def _mnist() -> tuple[Split, Split, Split, int]:
    images, labels, test_images, test_labels = (
        read_idx(content) for content in find("mnist", MNIST)
    )
    train, validation = _last((images[..., None], labels), 5_000)
    return train, validation, (test_images[..., None], test_labels), 255


def _cifar10() -> tuple[Split, Split, Split, int]:
    [archive] = find("cifar10", [CIFAR10])
    training = [read_cifar(archive, f"data_batch_{number}.bin") for number in range(1, 6)]
    images, labels = (np.concatenate(parts) for parts in zip(*training, strict=True))
    train, validation = _last((images, labels), 5_000)
    return train, validation, read_cifar(archive, "test_batch.bin"), 255


def _cifar10_5k() -> tuple[Split, Split, Split, int]:
    [archive] = find("cifar10", [CIFAR10_5K])
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        train, validation = _last((arrays["x_train"], arrays["y_train"]), 500)
        return train, validation, (arrays["x_test"], arrays["y_test"]), 255


def _last(split: Split, count: int) -> tuple[Split, Split]:
    """Holds out the last examples."""
    images, labels = split
    return (images[:-count], labels[:-count]), (images[-count:], labels[-count:])


def read_idx(content: bytes) -> np.ndarray:
    """uint8 array of an IDX file: two zero bytes, 8 for uint8, the number of dimensions, each
    dimension as four bytes, and the values. Raises `UserError` if it is anything else."""
    dimensions = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header], ">u4").astype(int)
    if not dimensions or len(shape) != dimensions or header + shape.prod() != len(content):
        raise UserError(f"{len(content)} bytes that should be an IDX file of uint8 are none")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar(archive: bytes, name: str) -> Split:
    """One batch of the binary version: a record is a label and 3 × 32 × 32 bytes, red first."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        member = members.extractfile(f"cifar-10-batches-bin/{name}")
        assert member is not None
        records = np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = records[:, 1:].reshape(-1, 3, 32, 32)  # [examples, channels, height, width]
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), records[:, 0]
