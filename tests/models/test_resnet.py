"""The residual network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.errors import UserError
from research.models.resnet import ResNetConfig
from research.models.specification import Specification

CIFAR = Specification(shape=(32, 32, 3), classes=10)
SMALL = Specification(shape=(16, 16, 3), classes=10)


def small(normalization: str, **fields) -> ResNetConfig:
    return ResNetConfig(normalization=normalization, width=8, groups=4, **fields)


def images(batch: int, side: int) -> np.ndarray:
    # A mean and a spread of its own for every image: statistics of part of a batch are not those
    # of the whole.
    random = np.random.default_rng(0)
    offset, scale = random.normal(size=(batch, 1, 1, 3)), random.uniform(0.5, 2, (batch, 1, 1, 1))
    return (offset + scale * random.normal(size=(batch, side, side, 3))).astype(np.float32)


@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_parameters_are_those_known_for_cifar(count, normalization):
    # ResNet-18 with a 3x3 stem, as in https://github.com/kuangliu/pytorch-cifar: 11,173,962; both
    # normalizations learn a scale and a bias for every channel.
    assert count(ResNetConfig(normalization=normalization), CIFAR) == 11_173_962


def test_parameters_are_those_known_for_imagenet(count):
    # torchvision's resnet18.
    specification = Specification(shape=(224, 224, 3), classes=1000)
    assert count(ResNetConfig(normalization="batch"), specification) == 11_689_512


def pytorch_logits(weights, buffers, inputs, normalization: str, train: bool):
    """ResNet-18 in PyTorch's functions; `buffers` are updated in place where `train` is true."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    functional = torch.nn.functional

    def convolve(x, kernel, strides: int):
        kernel = kernel.permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, stride=strides, padding=kernel.shape[-1] // 2)

    def normalize(x, weights, buffers):
        if normalization == "group":
            return functional.group_norm(x, 4, weights["scale"], weights["bias"])
        return functional.batch_norm(
            x, buffers["mean"], buffers["var"], weights["scale"], weights["bias"], training=train
        )

    def block(x, weights, buffers, strides: int):
        y = convolve(x, weights["first"]["kernel"], strides)
        y = functional.relu(normalize(y, weights["first_norm"], buffers.get("first_norm")))
        y = convolve(y, weights["second"]["kernel"], 1)
        y = normalize(y, weights["second_norm"], buffers.get("second_norm"))
        if "shortcut" in weights:
            x = convolve(x, weights["shortcut"]["kernel"], strides)
            x = normalize(x, weights["shortcut_norm"], buffers.get("shortcut_norm"))
        return functional.relu(x + y)

    x = torch.from_numpy(inputs).permute(0, 3, 1, 2)  # [batch, channels, height, width]
    large = inputs.shape[1] > 64
    x = convolve(x, weights["stem"]["kernel"], 2 if large else 1)
    x = functional.relu(normalize(x, weights["stem_norm"], buffers.get("stem_norm")))
    if large:
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
    for index, name in enumerate(("stage_1", "stage_2", "stage_3", "stage_4")):
        stage, statistics = weights[name], buffers.get(name, {})
        x = block(x, stage["first"], statistics.get("first", {}), 2 if index else 1)
        x = block(x, stage["second"], statistics.get("second", {}), 1)
    return x.mean((2, 3)) @ weights["output"]["kernel"] + weights["output"]["bias"]


@pytest.mark.parametrize(
    ("side", "normalization", "train"),
    [(16, "batch", True), (16, "group", True), (80, "batch", False)],
    ids=["batch-training", "group", "large-stem-evaluating"],
)
def test_logits_and_statistics_equal_pytorchs(step, side, normalization, train):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    config, specification = small(normalization), Specification((side, side, 3), 10)
    _, _, after, logits = step(config, specification, images(6, side), train=train)
    model = config.build(specification, jax.random.key(0))
    _, parameters, buffers = nnx.split(model, nnx.Param, ...)
    weights, statistics = (
        jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), nnx.to_pure_dict(part))
        for part in (parameters, buffers)
    )
    expected = pytorch_logits(weights, statistics, images(6, side), normalization, train)
    # 18 layers of float32 sums of up to 576 products, in another order.
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-4, rtol=1e-4)
    if normalization == "group":
        assert after == {}
        return
    stem, theirs = after["stem_norm"], statistics["stem_norm"]
    np.testing.assert_allclose(stem["mean"], theirs["mean"], atol=1e-5)
    # PyTorch's running variance is the unbiased one, n / (n - 1) of ours; n is 1,536 or more here.
    np.testing.assert_allclose(stem["var"], theirs["var"], rtol=1e-3)


def test_batch_statistics_are_threaded_through_jit(step):
    _, _, after, _ = step(small("batch"), SMALL, images(8, 16))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    model = small("batch").build(SMALL, jax.random.key(0))
    convolved = np.array(model.stem(images(8, 16)))
    # Running mean: 0.9 x 0 + 0.1 x batch mean; running variance: 0.9 x 1 + 0.1 x batch variance.
    stem = after["stem_norm"]
    np.testing.assert_allclose(stem["mean"], 0.1 * convolved.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(stem["var"], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-4)


def test_evaluation_leaves_statistics_alone_and_examples_apart(step):
    inputs = images(8, 16)
    _, _, after, logits = step(small("batch"), SMALL, inputs, train=False)
    stem = after["stem_norm"]
    np.testing.assert_array_equal(stem["mean"], np.zeros(8))
    np.testing.assert_array_equal(stem["var"], np.ones(8))
    _, _, _, half = step(small("batch"), SMALL, inputs[:4], train=False)
    np.testing.assert_allclose(half, logits[:4], atol=1e-4)  # other tilings of the same sums


def test_bfloat16_keeps_float32_logits_parameters_and_statistics(step):
    config = small("batch", dtype="bfloat16")
    _, gradients, after, logits = step(config, SMALL, images(4, 16))
    leaves = [*jax.tree.leaves(gradients), *jax.tree.leaves(after), logits]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    _, _, _, exact = step(small("batch"), SMALL, images(4, 16))
    # 18 layers, each rounding to 8 bits of mantissa; logits are about 1 in size.
    assert float(jnp.abs(logits - exact).max()) < 0.2


@pytest.mark.parametrize(
    ("config", "specification", "message"),
    [
        (ResNetConfig(width=48), CIFAR, r"groups 32 does not divide its width 48.*such as 24"),
        (ResNetConfig(groups=0), CIFAR, "groups 0 does not divide"),
        (ResNetConfig(width=0), CIFAR, "width is 0"),
        (ResNetConfig(), Specification((784,), 10), r"resnet needs images .*shape \(784,\)"),
    ],
)
def test_nonsense_is_refused_by_name(config, specification, message):
    with pytest.raises(UserError, match=message):
        config.build(specification, jax.random.key(0))


@pytest.mark.parametrize("normalization", ["batch", pytest.param("group", marks=pytest.mark.long)])
def test_every_mesh_gives_one_devices_loss_gradients_and_statistics(step, mesh, normalization):
    # One image a device on a mesh of data 8: statistics of a device's share would differ in full.
    inputs = images(8, 16)
    alone = step(small(normalization), SMALL, inputs)
    split = step(small(normalization), SMALL, inputs, mesh=mesh)
    # 18 normalized layers amplify the rounding of float32 sums taken in another order.
    assert split[0] == pytest.approx(alone[0], abs=1e-4)
    for one, many in zip(alone[1:3], split[1:3], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), many, one)
