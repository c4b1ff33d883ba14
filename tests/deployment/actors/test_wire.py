"""What crosses between processes: the same bits on the other side, and nothing else is taken."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from research.deployment.actors.wire import decoded, encoded


def like(tree: Any) -> Any:
    place = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)


TREE = {
    "a": np.array([[1.5, -0.0, np.inf]], np.float32).T,
    "b": (np.arange(6, dtype=np.int32).reshape(2, 3).T, np.float32(3.25)),
    "half": np.array([1.0, 1 / 3], np.float16),
}


def test_a_tree_comes_back_bit_for_bit() -> None:
    message = encoded(TREE)
    back = decoded(message, like(jax.tree.map(np.asarray, TREE)))
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for leaf, its in zip(*map(jax.tree.leaves, (back, TREE)), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(its).tobytes()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"a": np.zeros((1, 3), np.float32)}, "array 0 came as float32\\[3, 1\\], and float32\\[1"),
        ({"a": np.zeros((3, 1), np.int32)}, "and int32\\[3, 1\\] was expected"),
        ({"a": TREE["a"], "b": TREE["a"]}, "1 arrays came, and 2 were expected"),
    ],
)
def test_another_tree_is_refused(other: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decoded(encoded({"a": TREE["a"]}), like(other))


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(Exception, match="(?i)header"):
        decoded(b"nothing of the kind", like(TREE["a"]))
