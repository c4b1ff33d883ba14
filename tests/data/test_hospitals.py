"""Four hospitals: the published patients, and nothing of one hospital in another's rows."""

import os

import numpy as np
import pytest

from research.data.hospitals import (
    FILE_COLUMNS,
    HOSPITAL_COLUMNS,
    features_of,
    read_patients,
    split_by_label,
)
from research.data.tables import TableConfig

needs_data = pytest.mark.skipif(
    "RESEARCH_DATA" not in os.environ, reason="RESEARCH_DATA is not set"
)
PLACE = {name: place for place, name in enumerate(HOSPITAL_COLUMNS)}
FILE_PLACE = {name: place for place, name in enumerate(FILE_COLUMNS)}


@needs_data
def test_the_published_patients():
    dataset = TableConfig("heart_disease").load()
    assert dataset.columns == HOSPITAL_COLUMNS and dataset.specification.shape == (22,)
    assert dataset.clients is not None
    assert dataset.clients.names == ("cleveland", "hungarian", "switzerland", "va")
    owners = [dataset.clients.train, dataset.clients.validation, dataset.clients.test]
    labels = [source.targets for source in (dataset.train, dataset.validation, dataset.test)]  # type: ignore[attr-defined]
    for mine, split in zip(owners, labels, strict=True):
        assert len(mine) == len(split)
    everyone, sick = np.concatenate(owners), np.concatenate(labels)
    assert np.bincount(everyone).tolist() == [303, 294, 123, 200]
    # Patients without a narrowed vessel: the class distribution of heart-disease.names.
    assert np.bincount(everyone[sick == 0]).tolist() == [164, 188, 8, 51]
    for mine, share in zip(owners, (0.6, 0.15, 0.25), strict=True):
        # Rounded to a patient of each label, in two roundings.
        np.testing.assert_allclose(
            np.bincount(mine), share * np.array([303, 294, 123, 200]), atol=2
        )
    for split, mine in zip(labels, owners, strict=True):
        assert all(set(split[mine == hospital]) == {0, 1} for hospital in range(4))


@needs_data
def test_a_hospital_is_standardized_by_itself():
    dataset = TableConfig("heart_disease").load()
    assert dataset.clients is not None
    rows = dataset.train.rows(np.arange(len(dataset.train)))["inputs"]  # type: ignore[attr-defined]
    for hospital in range(4):
        mine = rows[dataset.clients.train == hospital]
        # Everybody's age is known: mean 0, deviation 1. Where some lack a number, they are at 0.
        np.testing.assert_allclose(mine[:, PLACE["age"]].mean(), 0, atol=1e-5)  # float32
        np.testing.assert_allclose(mine[:, PLACE["age"]].std(), 1, atol=1e-5)
        for name in ("blood_pressure", "cholesterol", "heart_rate", "depression", "vessels"):
            np.testing.assert_allclose(mine[:, PLACE[name]].mean(), 0, atol=1e-5)
            assert mine[:, PLACE[name]].std() < 1 + 1e-5
    # Nobody's cholesterol is measured in Switzerland (the file says 0), 2 patients' vessels in
    # Long Beach.
    assert not rows[dataset.clients.train == 2][:, PLACE["cholesterol"]].any()
    assert not rows[dataset.clients.train == 3][:, PLACE["vessels"]].any()


def patients(count: int = 60, seed: int = 0) -> np.ndarray:
    random = np.random.RandomState(seed)
    columns = [
        random.choice(kinds, count) if kinds else random.normal(100, 15, count)
        for kinds in FILE_COLUMNS.values()
    ]
    table = np.stack(columns, axis=1)
    table[random.uniform(size=table.shape) < 0.2] = np.nan
    return table


def test_what_is_missing_becomes_what_the_hospital_knows_of_training_patients():
    table, train = patients(), np.arange(40)
    features = features_of(table, train)
    assert features.shape == (60, len(HOSPITAL_COLUMNS)) and not np.isnan(features).any()
    age, male = table[:, FILE_PLACE["age"]], table[:, FILE_PLACE["male"]]
    assert np.isnan(age).any() and np.isnan(male).any()
    known = age[:40][~np.isnan(age[:40])]
    expected = np.where(np.isnan(age), 0, (age - known.mean()) / known.std())
    np.testing.assert_allclose(features[:, PLACE["age"]], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        features[np.isnan(male), PLACE["male"]], np.nanmean(male[:40]), rtol=1e-6
    )
    pain, kinds = table[:, FILE_PLACE["chest_pain"]], PLACE["chest_pain_1"]
    one_hot = features[:, kinds : kinds + 4]
    np.testing.assert_array_equal(one_hot.sum(axis=1), ~np.isnan(pain))
    np.testing.assert_array_equal((one_hot @ [1, 2, 3, 4])[~np.isnan(pain)], pain[~np.isnan(pain)])


def test_held_out_patients_change_no_training_row():
    table, train = patients(), np.arange(40)
    before = features_of(table, train)[:40]
    table[40:] = 1e6
    np.testing.assert_array_equal(features_of(table, train)[:40], before)


def test_a_number_that_nobody_measured_is_missing_for_all():
    table, train = patients(), np.arange(40)
    table[:, FILE_PLACE["vessels"]] = np.nan
    table[:9, FILE_PLACE["vessels"]] = np.arange(9)  # one fewer than it takes
    assert not features_of(table, train)[:, PLACE["vessels"]].any()
    table[9, FILE_PLACE["vessels"]] = 1
    assert features_of(table, train)[:, PLACE["vessels"]].any()


def test_question_marks_and_zeros_are_missing():
    content = b"32,1,1,95,0,?,0,127,0,.7,1,?,?,1\n63.0,1.0,4.0,0,260,0,1,?,1,-3,2,?,3.0,0\n"
    table, labels = read_patients(content)
    assert labels.tolist() == [1, 0]
    nan = np.nan
    np.testing.assert_array_equal(
        table,
        [
            [32, 1, 1, 95, nan, nan, 0, 127, 0, 0.7, 1, nan, nan],
            [63, 1, 4, nan, 260, 0, 1, nan, 1, -3, 2, nan, 3],
        ],
    )


def test_both_labels_are_split_alike():
    labels = np.array([0] * 40 + [1] * 20)
    parts = split_by_label(labels)
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[24, 12], [6, 3], [10, 5]]
    assert sorted(np.concatenate(parts)) == list(range(60))
