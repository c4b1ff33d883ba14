"""Attention over a split sequence: what a model's user sees of it, which is nothing."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from research.models import Specification, Transformer, TransformerConfig
from research.parallel.mesh import MeshConfig

CONFIG = TransformerConfig(layers=2, width=32, heads=4, key_value_heads=2, positions="rotary")
ROWS, LENGTH, CLASSES = 3, 16, 50


def tokens(length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CLASSES, (ROWS, length)).astype(np.int32)


def model_of(config: TransformerConfig) -> Transformer:
    return config.build(Specification((LENGTH,), CLASSES), jax.random.key(0))


def mesh_of(**sizes: int) -> Any:
    devices = jax.devices("cpu")[: int(np.prod(list(sizes.values())))]
    return jax.set_mesh(MeshConfig(**({"data": 1} | sizes)).build(devices))


@pytest.mark.parametrize("form", ["ring", "gather"])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("length", [16, 12, 10])
def test_called_it_answers_in_the_order_of_its_inputs(
    form: Any, positions: Any, length: int
) -> None:
    """Also of lengths that do not divide over the devices, as a prompt's may not: 16 does in both
    forms, 12 in one, 10 in neither. Float32 sums in another order: 1e-5 of logits of order 0.1."""
    model = model_of(replace(CONFIG, positions=positions, context_parallelism=form))
    expected = model(tokens(length))
    with mesh_of(context=4):
        logits = jax.jit(lambda rows: model(rows))(tokens(length))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "order"),
    [
        ("ring", [0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9]),
        ("gather", list(range(16))),
    ],
)
def test_targets_are_arranged_as_the_logits_of_a_forward_pass(form: Any, order: list[int]) -> None:
    model = model_of(replace(CONFIG, context_parallelism=form))
    expected = model(tokens())
    with mesh_of(context=4):
        np.testing.assert_array_equal(model.arrange(tokens()), tokens()[:, order])
        logits, _ = jax.jit(lambda rows: model.forward(rows))(tokens())
    np.testing.assert_allclose(logits, expected[:, order], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.arrange(tokens()), tokens())  # on one device


def test_a_token_draws_the_same_dropout_wherever_it_runs() -> None:
    model = model_of(replace(CONFIG, dropout=0.5))
    keys = jax.random.split(jax.random.key(1), ROWS)
    expected = model(tokens(), train=True, keys=keys)
    assert not np.allclose(expected, model(tokens()))
    with mesh_of(context=8):
        logits = jax.jit(lambda rows, keys: model(rows, train=True, keys=keys))(tokens(), keys)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_devices_that_share_a_head_of_keys_have_copies_of_it() -> None:
    """2 heads of keys, 4 devices along `tensor`."""
    model = model_of(CONFIG)
    expected = model(tokens())
    with mesh_of(context=2, tensor=4):
        logits = jax.jit(lambda rows: model(rows))(tokens())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
