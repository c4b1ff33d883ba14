"""Canaries: who they are, what they look like, and that one left out is an empty place."""

from dataclasses import replace

import numpy as np
import pytest

from research.data import (
    Canaries,
    ImagesConfig,
    LabeledArrays,
    PoissonBatches,
    TokenWindows,
    with_canaries,
)
from research.errors import UserError

COUNT, CLASSES = 400, 10
LABELS = np.arange(COUNT) % CLASSES
SOURCE = LabeledArrays(np.random.default_rng(0).normal(size=(COUNT, 3, 4)), LABELS)


def test_canaries_are_shuffled_examples_of_other_labels_by_fair_coins() -> None:
    made = Canaries(SOURCE, CLASSES, 200, seed=4)
    assert len(made) == COUNT == len(np.unique(np.append(made.numbers, np.arange(COUNT))))
    assert 70 < made.included.sum() < 130  # 4.2 deviations
    before = SOURCE.rows(made.numbers)
    assert (made.contents["targets"] != before["targets"]).all()
    assert len(np.unique(made.contents["targets"])) == CLASSES
    np.testing.assert_array_equal(
        np.sort(made.contents["inputs"].reshape(200, -1)),
        np.sort(before["inputs"].reshape(200, -1)),
    )
    assert (made.contents["inputs"] != before["inputs"]).any(axis=(1, 2)).all()
    again, other = Canaries(SOURCE, CLASSES, 200, seed=4), Canaries(SOURCE, CLASSES, 200, seed=5)
    np.testing.assert_array_equal(again.included, made.included)
    assert (other.numbers != made.numbers).any() and (other.included != made.included).any()


def test_a_canary_that_was_left_out_is_in_no_row() -> None:
    made = Canaries(SOURCE, CLASSES, 200, seed=4)
    rows = made.rows(np.arange(COUNT))
    here, gone = made.numbers[made.included], made.numbers[~made.included]
    assert (rows["weights"][gone] == 0).all() and rows["weights"].sum() == COUNT - len(gone)
    np.testing.assert_array_equal(rows["inputs"][here], made.contents["inputs"][made.included])
    np.testing.assert_array_equal(rows["targets"][here], made.contents["targets"][made.included])
    others = np.setdiff1d(np.arange(COUNT), made.numbers)
    np.testing.assert_array_equal(rows["inputs"][others], SOURCE.rows(others)["inputs"])
    assert all((rows["inputs"][others] == rows["inputs"][i]).all(axis=(1, 2)).any() for i in gone)
    assert len(made.each()) == 200 and made.each()[7].keys() == {"inputs", "targets"}

    batches = PoissonBatches(made, 0.5, rows=320, microbatches=4, seed=1)
    drawn = batches.rows(0, range(320))
    chosen = batches.indexes(0)
    assert drawn["weights"].sum() == len(np.setdiff1d(chosen, gone)) < len(chosen)


def test_a_canary_of_text_is_a_window_of_shuffled_tokens() -> None:
    windows = TokenWindows(np.arange(900), context=8, stride=4)
    made = Canaries(windows, 900, 20, seed=0)
    inputs, targets = made.contents["inputs"], made.contents["targets"]
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    tokens = np.sort(np.concatenate([inputs, targets[:, -1:]], axis=1))
    np.testing.assert_array_equal(tokens, made.numbers[:, None] * 4 + np.arange(9))


def test_the_data_is_another_one_with_canaries() -> None:
    digits = ImagesConfig(name="digits").load()
    made = [with_canaries(digits, count, seed).digest for count, seed in ((5, 0), (5, 1), (6, 0))]
    assert len({digits.digest, *made}) == 4
    with pytest.raises(UserError, match="900 canaries are more than half of 1,437"):
        with_canaries(replace(digits), 900, 0)
