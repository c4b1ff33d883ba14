"""Images: the publisher's examples in the splits that are stated, standardized when read."""

import io
import os
import tarfile

import numpy as np
import pytest

from research.data.images import ImagesConfig, read_cifar, read_idx
from research.errors import UserError

needs_data = pytest.mark.skipif(
    "RESEARCH_DATA" not in os.environ, reason="RESEARCH_DATA is not set"
)
CASES = [
    ("digits", (8, 8, 1), (1437, 180, 180)),
    pytest.param("mnist", (28, 28, 1), (55_000, 5_000, 10_000), marks=needs_data),
    pytest.param("cifar10_5k", (32, 32, 3), (4_500, 500, 1_000), marks=needs_data),
]


@pytest.mark.parametrize(("name", "shape", "counts"), CASES)
def test_splits_shapes_and_scale(name, shape, counts):
    dataset = ImagesConfig(name).load()
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == counts
    assert dataset.specification.shape == shape and dataset.specification.classes == 10
    assert dataset.unit == "examples" and dataset.vocabulary is None
    example = dataset.train[0]
    assert example["inputs"].shape == shape and example["inputs"].dtype == np.float32
    assert example["targets"].shape == () and example["targets"].dtype == np.int32
    batch = dataset.train.rows(np.arange(counts[0]))  # type: ignore[attr-defined]
    # The constants are rounded to 4 digits, and those of CIFAR-10 are of all 50,000 images.
    axes = (0, 1, 2)
    np.testing.assert_allclose(batch["inputs"].mean(axes), 0, atol=0.02)
    np.testing.assert_allclose(batch["inputs"].std(axes), 1, atol=0.02)
    assert set(np.unique(batch["targets"])) == set(range(10))


def test_without_holding_out_all_training_images_train_and_the_test_images_validate():
    apart, dataset = ImagesConfig("digits").load(), ImagesConfig("digits", hold_out=False).load()
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1617, 180, 180)
    assert dataset.test_is_validation and not apart.test_is_validation
    expected = np.concatenate([apart.train.targets, apart.validation.targets])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(dataset.train.targets, expected)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(dataset.validation[7]["inputs"], apart.test[7]["inputs"])


def test_digits_are_the_published_ones():
    dataset = ImagesConfig("digits").load()
    labels = np.concatenate(
        [source.targets for source in (dataset.train, dataset.validation, dataset.test)]  # type: ignore[attr-defined]
    )
    # Class counts of the UCI test set, as its description and scikit-learn state them.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@needs_data
def test_mnist_holds_out_the_last_training_images():
    dataset = ImagesConfig("mnist").load()
    # The first labels of the training and test files, as every print of MNIST shows them.
    assert dataset.train.targets[:5].tolist() == [5, 0, 4, 1, 9]  # type: ignore[attr-defined]
    assert dataset.test.targets[:5].tolist() == [7, 2, 1, 0, 4]  # type: ignore[attr-defined]
    assert dataset.validation.targets[-3:].tolist() == [5, 6, 8]  # type: ignore[attr-defined]
    dark = (0 - 0.1307) / 0.3081
    np.testing.assert_allclose(dataset.train[0]["inputs"][0, 0, 0], dark, rtol=1e-5)


def test_cifar_binary_records_become_channels_last():
    records = np.zeros((2, 3073), np.uint8)
    records[1, 0] = 7  # label
    records[1, 1 + 1024 * 2 + 32 * 3 + 4] = 255  # blue, row 3, column 4
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as members:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = records.nbytes
        members.addfile(member, io.BytesIO(records.tobytes()))
    images, labels = read_cifar(archive.getvalue(), "test_batch.bin")
    assert images.shape == (2, 32, 32, 3) and labels.tolist() == [0, 7]
    assert np.argwhere(images).tolist() == [[1, 3, 4, 2]]


def test_idx_header():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    np.testing.assert_array_equal(read_idx(content), [[0, 1, 2], [3, 4, 5]])
    for broken in (b"", content[:-1], content + b"\0", b"\x1f\x8b" + content[2:]):
        with pytest.raises(UserError, match="IDX"):
            read_idx(broken)
