"""Softmax regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.linear import LinearConfig
from research.models.specification import Specification

MNIST = Specification(shape=(28, 28, 1), classes=10)


def test_parameters_are_those_of_the_paper(count):
    # Li et al. 2020 (arXiv:1812.06127), table 1: logistic regression on MNIST, 784 x 10 + 10.
    assert count(LinearConfig(), MNIST) == 7_850


def test_starts_at_the_uniform_distribution(step):
    inputs = np.random.default_rng(0).normal(size=(8, 28, 28, 1)).astype(np.float32)
    loss, gradients, buffers, _ = step(LinearConfig(), MNIST, inputs)
    assert loss == pytest.approx(np.log(10), abs=1e-6)
    assert buffers == {}
    # d loss / d b = mean(softmax - one hot): with 8 examples of labels 0..7, known by hand.
    expected = np.full(10, 0.1) - np.array([1 / 8] * 8 + [0, 0])
    np.testing.assert_allclose(gradients["output"]["bias"], expected, atol=1e-6)


def test_logits_are_an_affine_map():
    specification = Specification(shape=(5,), classes=3)
    model = LinearConfig().build(specification, jax.random.key(0))
    random = np.random.default_rng(0)
    weight, bias, inputs = (random.normal(size=s).astype("f") for s in ((5, 3), (3,), (4, 5)))
    model.output.kernel[...], model.output.bias[...] = jnp.array(weight), jnp.array(bias)
    np.testing.assert_allclose(model(jnp.array(inputs)), inputs @ weight + bias, atol=1e-5)


def test_bfloat16_returns_float32_logits_and_keeps_float32_parameters():
    model = LinearConfig(dtype="bfloat16").build(MNIST, jax.random.key(0))
    assert model(jnp.ones((2, 28, 28, 1))).dtype == jnp.float32
    assert model.output.kernel.dtype == jnp.float32


def test_tokens_are_refused_by_name():
    model = LinearConfig().build(Specification(shape=(64,), classes=65), jax.random.key(0))
    with pytest.raises(UserError, match="real numbers.*int32.*transformer"):
        model(jnp.zeros((2, 64), jnp.int32))


def test_every_mesh_gives_one_devices_loss_and_gradients(step, mesh):
    # 31 features divide over no fsdp axis: they stay whole.
    inputs = np.random.default_rng(0).normal(size=(16, 31)).astype(np.float32)
    specification = Specification(shape=(31,), classes=10)
    alone = step(LinearConfig(), specification, inputs)
    split = step(LinearConfig(), specification, inputs, mesh=mesh)
    # Sums of 16 float32 numbers in another order.
    assert split[0] == pytest.approx(alone[0], abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), split[1], alone[1])
