"""What is outside of a distribution: the same values in another order, or another set's images."""

from pathlib import Path

import numpy as np
import pytest

from research.data import ImagesConfig, TableConfig, TextConfig, outside, read_rows
from research.errors import UserError


def test_permuted_inputs_are_the_same_values_in_another_order() -> None:
    test = ImagesConfig(name="digits").load().test
    strange = outside(test, "permuted")
    assert len(strange) == len(test) == 180
    which = np.array([3, 100])
    mine, its = (read_rows(source, which)["inputs"] for source in (strange, test))
    assert mine.shape == its.shape
    np.testing.assert_array_equal(np.sort(mine.reshape(2, -1)), np.sort(its.reshape(2, -1)))
    assert (mine != its).mean() > 0.5
    # Each in an order of its own, and always the same.
    np.testing.assert_array_equal(strange[100]["inputs"], mine[1])
    places = [np.argsort(each.ravel(), kind="stable") for each in mine]
    assert (places[0] != places[1]).any()


def test_text_in_another_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 200)
    text = TextConfig(source=str(path), vocabulary="character", context=8, batch=1).load()
    with pytest.raises(UserError, match="use --ensemble.outside none"):
        outside(text.test, "permuted")


def test_photographs_are_for_gray_images_only() -> None:
    with pytest.raises(UserError, match="use --ensemble.outside permuted"):
        outside(TableConfig().load().test, "cifar10_5k")
