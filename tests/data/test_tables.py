"""Tables: standardized with the training rows only, and the same split every time."""

import numpy as np

from research.data.tables import TableConfig


def test_breast_cancer():
    dataset = TableConfig().load()
    assert dataset.specification.shape == (30,) and dataset.specification.classes == 2
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [399, 85, 85]
    features = dataset.train.rows(np.arange(399))["inputs"]  # type: ignore[attr-defined]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)  # float32 of 399 rows
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-5)
    # Held-out rows are standardized with numbers that are not theirs.
    held_out = dataset.test.rows(np.arange(85))["inputs"]  # type: ignore[attr-defined]
    assert np.abs(held_out.mean(axis=0)).max() > 0.01
    labels = np.concatenate([split.targets for split in splits])  # type: ignore[attr-defined]
    assert np.bincount(labels).tolist() == [212, 357]  # malignant, benign: the published counts


def test_the_split_is_fixed():
    first, second = TableConfig().load(), TableConfig().load()
    np.testing.assert_array_equal(first.train[0]["inputs"], second.train[0]["inputs"])
    assert first.digest == second.digest
