"""Tables: standardized with the training rows only, and the same split every time."""

import os

import numpy as np
import pytest

from research.data.tables import TableConfig

needs_data = pytest.mark.skipif(
    "RESEARCH_DATA" not in os.environ, reason="RESEARCH_DATA is not set"
)


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


@needs_data
def test_credit_default():
    dataset = TableConfig("credit_default").load()
    assert dataset.specification.shape == (23,) and len(dataset.columns) == 23
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [21_000, 4_500, 4_500]
    labels = np.concatenate([split.targets for split in splits])  # type: ignore[attr-defined]
    assert labels.sum() == 6_636  # 22.12 % (Yeh and Lien 2009)
    features = dataset.train.rows(np.arange(21_000))["inputs"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(features.mean(axis=0, dtype=float), 0, atol=1e-6)  # of float32
    np.testing.assert_allclose(features.std(axis=0, dtype=float), 1, atol=1e-6)
    # Who pays late in September does not pay in October: no other column says as much.
    late = [abs(np.corrcoef(column, dataset.train.targets)[0, 1]) for column in features.T]  # type: ignore[attr-defined]
    assert dataset.columns[int(np.argmax(late))] == "delay_september"


def test_the_split_is_fixed():
    first, second = TableConfig().load(), TableConfig().load()
    np.testing.assert_array_equal(first.train[0]["inputs"], second.train[0]["inputs"])
    assert first.digest == second.digest
