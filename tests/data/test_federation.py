"""Data sets among clients: held-out examples go where those like them train."""

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from research.data import ImagesConfig, LabeledArrays, TableConfig, TextConfig
from research.data.dataset import NaturalClients
from research.data.federation import federate
from research.data.partition import PartitionConfig
from research.data.shift import ImageShift, apply
from research.errors import UserError

needs_data = pytest.mark.skipif(
    "RESEARCH_DATA" not in os.environ, reason="RESEARCH_DATA is not set"
)
DIGITS, CANCER = ImagesConfig("digits").load(), TableConfig().load()


def source(dataset: Any, split: str) -> LabeledArrays:
    found = getattr(dataset, split)
    assert isinstance(found, LabeledArrays)
    return found


def test_held_out_labels_follow_those_of_training():
    federation = federate(DIGITS, PartitionConfig("shards", clients=5))
    assert federation.dataset is DIGITS
    for split in ("validation", "test"):
        clients = getattr(federation, split)
        labels = source(DIGITS, split).targets
        np.testing.assert_array_equal(np.sort(clients.indexes), np.arange(180))
        totals = np.bincount(labels, minlength=10)
        shares = federation.train.histogram / federation.train.histogram.sum(axis=0)
        assert np.abs(clients.histogram - shares * totals).max() < 1 + 1e-9
        assert not clients.histogram[federation.train.histogram == 0].any()
    content = json.loads(json.dumps(federation.to_json()))
    assert content["partition"]["kind"] == "shards" and content["partition"]["seed"] == 0
    assert content["train"]["digest"] == federation.train.digest
    assert content["test"]["histogram"] == federation.test.histogram.tolist()


def test_images_are_seen_by_their_client_in_every_split():
    config = PartitionConfig("feature", clients=6, shift=ImageShift(40, 0.5, 0.5), seed=3)
    federation = federate(DIGITS, config)
    shifts = config.shift.draw(6, 3)
    for split in ("train", "validation", "test"):
        clients, before = getattr(federation, split), source(DIGITS, split)
        after = source(federation.dataset, split)
        np.testing.assert_array_equal(after.targets, before.targets)
        assert after.inputs.dtype == np.uint8
        for client in range(6):
            mine = clients[client]
            expected = np.rint(apply(shifts[client], before.inputs[mine].astype(np.float32)))
            np.testing.assert_array_equal(after.inputs[mine], expected)
        # Read, they are standardized as before.
        scale = (before.rows(np.array([0]))["inputs"] - after.rows(np.array([0]))["inputs"]).ravel()
        raw = before.inputs[0].astype(float) - after.inputs[0]
        np.testing.assert_allclose(scale * 0.3767 * 16, raw.ravel(), atol=1e-4)
    assert federation.dataset.digest != DIGITS.digest
    assert federation.train.digest == federate(DIGITS, replace(config, kind="iid")).train.digest


@pytest.mark.parametrize("column", ["", "3"])
def test_a_table_is_cut_at_the_same_places_in_every_split(column):
    federation = federate(CANCER, PartitionConfig("feature", clients=4, column=column))
    rows = [source(CANCER, split).rows(np.arange(len(source(CANCER, split))))["inputs"]
            for split in ("train", "validation", "test")]  # fmt: skip
    if column:
        scores = [split[:, 3] for split in rows]
    else:
        direction = np.linalg.svd(rows[0] - rows[0].mean(axis=0))[2][0]
        direction *= np.sign(direction[np.abs(direction).argmax()])
        scores = [split @ direction for split in rows]
    splits = (federation.train, federation.validation, federation.test)
    assert np.ptp(federation.train.sizes) <= 1
    cuts = [scores[0][federation.train[client]].max() for client in range(3)]
    for clients, values in zip(splits, scores, strict=True):
        np.testing.assert_array_equal(clients.owners, np.searchsorted(cuts, values))


def test_natural_clients_keep_their_examples_and_small_ones_are_left_out():
    random = np.random.RandomState(0)
    owners = NaturalClients(
        ("small", "large", "middle"),
        np.repeat([0, 1, 2], [9, 350, 40]),
        random.randint(0, 3, 85),
        random.randint(0, 3, 85),
    )
    dataset = replace(CANCER, clients=owners)
    everyone = federate(dataset, PartitionConfig("natural"))
    assert everyone.train.sizes.tolist() == [9, 350, 40]
    assert everyone.train.names == ("small", "large", "middle")
    federation = federate(dataset, PartitionConfig("natural", minimum=10))
    assert federation.train.names == federation.test.names == ("large", "middle")
    assert federation.train.to_json()["left_out"] == 9
    np.testing.assert_array_equal(federation.test[1], np.flatnonzero(owners.test == 2))
    with pytest.raises(UserError, match=r"none of the 3 clients has 351 .* the largest has 350"):
        federate(dataset, PartitionConfig("natural", minimum=351))


@needs_data
def test_hospitals_and_roles():
    hospitals = federate(TableConfig("heart_disease").load(), PartitionConfig("natural"))
    assert hospitals.train.names == ("cleveland", "hungarian", "switzerland", "va")
    sizes = sum(getattr(hospitals, split).sizes for split in ("train", "validation", "test"))
    assert sizes.tolist() == [303, 294, 123, 200]
    text = TextConfig("shakespeare_by_role", context=80, validation_fraction=0.2).load()
    roles = federate(text, PartitionConfig("natural"))
    assert len(roles.train) == 1117 and roles.train.sizes.min() == 1
    assert roles.train.histogram.sum() == 80 * len(text.train)
    assert roles.test is roles.validation
    quantity = federate(text, PartitionConfig("quantity", clients=10))
    assert quantity.train.sizes.sum() == len(text.train)


@needs_data
def test_mnist_of_mcmahan():
    """§3: 100 clients of 600 in two shards of 300. Digits meet in at most 9 of the 200 shards, so
    at least 91 clients have at most two digits."""
    mnist = federate(ImagesConfig("mnist", hold_out=False).load(), PartitionConfig("shards"))
    assert set(mnist.train.sizes) == {600}
    digits = (mnist.train.histogram > 0).sum(axis=1)
    assert (digits <= 2).sum() >= 91 and digits.max() <= 4
    assert mnist.test is mnist.validation and mnist.test.sizes.sum() == 10_000
    assert mnist.train.heterogeneity > 0.75  # 0.8 for two of ten equally frequent digits


@needs_data
def test_eight_banks():
    credit = TableConfig("credit_default").load()
    banks = federate(credit, PartitionConfig("feature", clients=8, column="limit"))
    assert banks.train.sizes.tolist() == [2625] * 8
    defaults = banks.train.histogram[:, 1] / banks.train.sizes
    assert defaults[0] > 0.3 and defaults[-1] < 0.15  # the less a bank lends, the fewer pay
    with pytest.raises(UserError, match=r"has no column 'limits': it has limit, sex, "):
        federate(credit, PartitionConfig("feature", clients=8, column="limits"))


def test_what_cannot_be_dealt_out_is_named(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("0123456789" * 10)
    text = TextConfig(str(path), context=4).load()
    with pytest.raises(UserError, match="is one text, whose windows overlap"):
        federate(text, PartitionConfig(clients=2))
    with pytest.raises(UserError, match="no clients of its own"):
        federate(DIGITS, PartitionConfig("natural"))
    with pytest.raises(UserError, match=r"breast_cancer has no column '30': it has 0 to 29"):
        federate(CANCER, PartitionConfig("feature", clients=3, column="30"))
