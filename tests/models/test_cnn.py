"""The small convolutional networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.errors import UserError
from research.models.cnn import CNNConfig, max_pool
from research.models.specification import Specification

MNIST = Specification(shape=(28, 28, 1), classes=10)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("mcmahan", 1_663_370),  # McMahan et al. 2017 (arXiv:1602.05629), section 3
        # LeNet-5, full connections between the convolutions: 156 + 2,416 + 48,120 + 10,164 + 850.
        ("lenet", 61_706),
    ],
)
def test_parameters_are_those_of_the_paper(count, kind, parameters):
    assert count(CNNConfig(kind=kind), MNIST) == parameters


@pytest.mark.parametrize("kind", ["lenet", "mcmahan"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (7, 13, 2), (4, 4, 1), (11, 11, 1)])
def test_other_sizes_of_image_work(step, kind, shape):
    inputs = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    loss, gradients, _, logits = step(CNNConfig(kind=kind), Specification(shape, 5), inputs)
    assert logits.shape == (3, 5) and logits.dtype == jnp.float32
    assert np.isfinite(loss)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, f"{path} learns nothing"


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 3)], ids=["even", "odd"])
def test_max_pool_is_that_of_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    weight = jax.random.normal(
        jax.random.key(1), (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    )
    pools = (max_pool, lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)))
    ours, theirs = (jax.value_and_grad(lambda x, p=p: (p(x) * weight).sum())(x) for p in pools)
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-5)
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("kind", ["lenet", "mcmahan"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (13, 10, 3)])
def test_logits_equal_pytorchs(kind, shape):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    functional = torch.nn.functional
    model = CNNConfig(kind=kind).build(Specification(shape, 10), jax.random.key(0))
    # Biases start at zero; give them values so that they are compared too.
    state = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        nnx.state(model),
    )
    nnx.update(model, state)
    weights = jax.tree.map(
        lambda leaf: torch.from_numpy(np.array(leaf)), nnx.to_pure_dict(nnx.state(model))
    )
    inputs = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    x = torch.from_numpy(inputs).permute(0, 3, 1, 2)  # [batch, channels, height, width]
    for index, name in enumerate(("first", "second")):
        # The paper's padding: LeNet's second convolution has none, where a window fits twice.
        valid = kind == "lenet" and index == 1 and min(x.shape[2:]) >= 6
        kernel = weights[name]["kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, weights[name]["bias"], padding=0 if valid else 2)
        x = functional.max_pool2d(functional.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for name in ("hidden", "second_hidden", "output"):
        if name in weights:
            x = x @ weights[name]["kernel"] + weights[name]["bias"]
            x = x if name == "output" else functional.relu(x)
    # Float32 sums of up to 3,136 products, in another order.
    np.testing.assert_allclose(model(jnp.array(inputs)), x.numpy(), atol=1e-3, rtol=1e-4)


def test_bfloat16_returns_float32_logits_and_keeps_float32_parameters():
    model = CNNConfig(kind="lenet", dtype="bfloat16").build(MNIST, jax.random.key(0))
    assert model(jnp.ones((2, 28, 28, 1))).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64,), r"needs images of shape .* examples have shape \(64,\)"),
        ((3, 28, 1), "4 x 4 pixels or more, not 3 x 28"),
    ],
)
def test_what_is_no_image_is_refused_by_name(shape, message):
    with pytest.raises(UserError, match=message):
        CNNConfig().build(Specification(shape, 10), jax.random.key(0))


@pytest.mark.parametrize("kind", ["lenet", "mcmahan"])
def test_every_mesh_gives_one_devices_loss_and_gradients(step, mesh, kind):
    inputs = np.random.default_rng(0).normal(size=(8, 12, 12, 1)).astype(np.float32)
    specification, config = Specification((12, 12, 1), 10), CNNConfig(kind=kind)
    alone = step(config, specification, inputs)
    split = step(config, specification, inputs, mesh=mesh)
    # Sums of up to 1,600 float32 products in another order; gradients are below 1 in size.
    assert split[0] == pytest.approx(alone[0], abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split[1], alone[1])
