"""The multilayer perceptron."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.errors import UserError
from research.models.mlp import MLPConfig
from research.models.specification import Specification

MNIST = Specification(shape=(28, 28, 1), classes=10)
TABLE = Specification(shape=(30,), classes=3)

# As the definitions read, in NumPy.
NUMPY_ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    # Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2, the tanh approximation.
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def test_parameters_are_those_of_the_paper(count):
    # McMahan et al. 2017 (arXiv:1602.05629), section 3: the MNIST 2NN.
    assert count(MLPConfig(), MNIST) == 199_210


def test_no_hidden_layer_is_softmax_regression(count):
    assert count(MLPConfig(widths=()), MNIST) == 7_850


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_logits_equal_numpys(activation):
    config = MLPConfig(widths=(20, 13), activation=activation)
    model = config.build(TABLE, jax.random.key(0))
    layers = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    inputs = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    x = inputs
    for layer in (layers["hidden"]["layer_0"], layers["hidden"]["layer_1"]):
        x = NUMPY_ACTIVATIONS[activation](x @ np.array(layer["kernel"]) + np.array(layer["bias"]))
    expected = x @ np.array(layers["output"]["kernel"]) + np.array(layers["output"]["bias"])
    # Float32 sums of at most 30 products of size 1, and two implementations of tanh.
    np.testing.assert_allclose(model(jnp.array(inputs)), expected, atol=1e-5)


def test_dropout_needs_both_train_and_keys():
    model = MLPConfig(dropout=0.5).build(TABLE, jax.random.key(0))
    x, keys = jnp.ones((4, 30)), jax.random.split(jax.random.key(1), 4)
    plain = model(x)
    np.testing.assert_array_equal(model(x, train=True), plain)
    np.testing.assert_array_equal(model(x, keys=keys), plain)
    dropped = model(x, train=True, keys=keys)
    assert not np.allclose(dropped, plain)
    np.testing.assert_array_equal(model(x, train=True, keys=keys), dropped)


def test_dropout_keeps_the_mean():
    # Logits are linear in the units of the only hidden layer, so dropout leaves their mean alone.
    config = MLPConfig(widths=(50,), dropout=0.3)
    model = config.build(TABLE, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 30))
    draws = jax.vmap(lambda key: model(x, train=True, keys=key[None]))(
        jax.random.split(jax.random.key(2), 4_000)
    )
    error = draws.std(axis=0) / math.sqrt(len(draws))
    assert float((jnp.abs(draws.mean(axis=0) - model(x)) / error).max()) < 5  # standard errors


def test_bfloat16_returns_float32_logits_and_keeps_float32_parameters():
    model = MLPConfig(dtype="bfloat16").build(TABLE, jax.random.key(0))
    assert model(jnp.ones((2, 30))).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MLPConfig(widths=(20, 0)), "widths are .20, 0.: each hidden layer needs 1"),
        (MLPConfig(dropout=1.0), "dropout is 1.0: it must be"),
        (MLPConfig(dropout=-0.1), "dropout is -0.1: it must be"),
    ],
)
def test_nonsense_is_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        config.build(TABLE, jax.random.key(0))


def test_tokens_are_refused_by_name():
    model = MLPConfig().build(TABLE, jax.random.key(0))
    with pytest.raises(UserError, match="the mlp learns from real numbers"):
        model(jnp.zeros((2, 30), jnp.int32))


@pytest.mark.parametrize("widths", [(16, 8), (13, 7, 5)], ids=["even", "odd"])
def test_every_mesh_gives_one_devices_loss_and_gradients(step, mesh, widths):
    inputs = np.random.default_rng(0).normal(size=(16, 30)).astype(np.float32)
    config = MLPConfig(widths=widths)
    alone = step(config, TABLE, inputs)
    split = step(config, TABLE, inputs, mesh=mesh)
    # Sums of at most 30 float32 numbers in another order.
    assert split[0] == pytest.approx(alone[0], abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), split[1], alone[1])
