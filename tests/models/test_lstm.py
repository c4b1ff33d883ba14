"""The stacked LSTM, beside one that is written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.lstm import LSTMConfig
from research.models.specification import Specification

TEXT = Specification(shape=(7,), classes=11)


def test_parameters_are_those_of_the_papers_model(count):
    # 90 characters: 90 · 8, 4 · 256 · (8 + 256 + 1), 4 · 256 · (256 + 256 + 1), (256 + 1) · 90.
    assert count(LSTMConfig(), Specification(shape=(80,), classes=90)) == 820_522


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_logits_are_those_of_the_equations():
    """One character, one unit's gates and one layer after the other, in float64."""
    model = LSTMConfig(layers=2, width=3, embedding=2).build(TEXT, jax.random.key(1))
    tokens = np.random.default_rng(0).integers(11, size=(2, 7))
    made = model(jnp.array(tokens))
    assert made.shape == (2, 7, 11) and made.dtype == jnp.float32
    for row in range(2):
        read = [np.array(model.embedding[...], np.float64)[token] for token in tokens[row]]
        for layer in model.layers:
            w, u, b = (
                np.array(p[...], np.float64) for p in (layer.inputs, layer.recurrent, layer.bias)
            )
            h, c, said = np.zeros(3), np.zeros(3), []
            for x in read:
                i, f, g, o = (x @ w[:, gate] + h @ u[:, gate] + b[gate] for gate in range(4))
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                said.append(h)
            read = said
        logits = np.array(read) @ np.array(model.output.kernel[...]) + model.output.bias[...]
        np.testing.assert_allclose(made[row], logits, atol=1e-5)  # float32


def test_the_start_is_keras_one():
    """As in the authors' code: orthogonal U, W and U in their ranges, an open forget gate."""
    layer = LSTMConfig().build(TEXT, jax.random.key(0)).layers[0]
    u = np.array(layer.recurrent[...]).reshape(256, 1024)
    np.testing.assert_allclose(u @ u.T, np.eye(256), atol=1e-5)
    limit = np.sqrt(6 / (8 + 1024))
    assert 0.99 * limit < np.abs(layer.inputs[...]).max() <= limit
    np.testing.assert_array_equal(layer.bias[...], np.eye(4)[1][:, None] * np.ones(256))


def test_bfloat16_returns_float32_logits_near_those_of_float32():
    plain, coarse = (
        LSTMConfig(width=16, dtype=dtype).build(TEXT, jax.random.key(0))  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    )
    tokens = jnp.arange(7)[None]
    made = coarse(tokens)
    assert made.dtype == coarse.embedding[...].dtype == jnp.float32
    np.testing.assert_allclose(made, plain(tokens), atol=0.05)  # of 8 bits, and 7 steps
    assert np.abs(made - plain(tokens)).max() > 0


def test_mistakes_are_named():
    with pytest.raises(UserError, match="the lstm's width is 0: use 1 or more"):
        LSTMConfig(width=0).build(TEXT, jax.random.key(0))
    with pytest.raises(UserError, match=r"reads sequences of tokens.*\(8, 8, 1\): use text"):
        LSTMConfig().build(Specification(shape=(8, 8, 1), classes=10), jax.random.key(0))
