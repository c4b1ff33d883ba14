"""The residual network.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385:

    block(x) = relu(normalize(W_2 * relu(normalize(W_1 * x))) + shortcut(x))

ResNet-18 is four stages of two such blocks; each stage but the first halves the image and doubles
the channels, and its shortcut is then a normalized 1x1 convolution (the paper's option B). With
batch normalization on CIFAR-10 it has 11,173,962 parameters.

Normalization is by default group normalization (Wu and He, 2018, arXiv:1803.08494), which knows no
other example: averaging models of clients with different data breaks batch normalization (Hsieh et
al., "The Non-IID Data Quagmire of Decentralized Machine Learning", 2020, arXiv:1910.00189), and
per-example gradients do not exist with it. With `batch`, statistics are those of the global batch
on every mesh; running averages (weight 0.9 on the old value, the variance biased where PyTorch's is
not) live in variables of type `nnx.BatchStat`, beside the parameters, and are used where `train` is
false.

Scales of all normalizations start at one, as torchvision's do; starting the last of each block at
zero (Goyal et al., 2017, arXiv:1706.02677) is not done here. Convolutions are padded equally on
both sides, as in PyTorch, so that its weights give its logits.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.errors import UserError
from research.models.convolution import convolve
from research.models.inputs import image_shape
from research.models.model import Model
from research.models.specification import Specification
from research.parallel.layout import constrain

SMALL_IMAGE = 64  # pixels; up to here the stem keeps the image's size


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network for images."""

    depth: Literal[18] = 18
    """Layers with weights, as the paper counts them."""

    normalization: Literal["group", "batch"] = "group"
    """Statistics over groups of channels of one image, or over the global batch."""

    groups: int = 32
    """Groups of channels of group normalization; must divide the width."""

    width: int = 64
    """Channels of the first stage; the fourth has 8 times as many."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions; parameters, statistics and logits are always float32."""

    def build(self, specification: Specification, key: jax.Array) -> "ResNet":
        """Returns the model with parameters drawn from `key`.

        Raises `UserError` where examples are not images, or the groups do not divide the width.
        """
        image_shape(specification, "the resnet")
        if self.width < 1:
            raise UserError(f"resnet width is {self.width}: it needs 1 channel or more")
        if self.normalization == "group" and (self.groups < 1 or self.width % self.groups):
            raise UserError(
                f"resnet groups {self.groups} does not divide its width {self.width}: use groups "
                f"that do (such as {largest_divisor(self.width, self.groups)}), or another width"
            )
        return ResNet(self, specification, nnx.Rngs(key))


class ResNet(Model):
    """A residual network; see the file's head."""

    def __init__(self, config: ResNetConfig, specification: Specification, rngs: nnx.Rngs):
        height, image_width, channels = image_shape(specification, "the resnet")
        self.small = max(height, image_width) <= SMALL_IMAGE
        self.dtype = jnp.dtype(config.dtype)
        width = config.width
        kernel, strides = (3, 1) if self.small else (7, 2)
        self.stem = convolution(config, channels, width, kernel, strides, (None, "embed"), rngs)
        self.stem_norm = normalization(config, width, rngs)
        self.stage_1 = Stage(config, width, width, 1, rngs)
        self.stage_2 = Stage(config, width, 2 * width, 2, rngs)
        self.stage_3 = Stage(config, 2 * width, 4 * width, 2, rngs)
        self.stage_4 = Stage(config, 4 * width, 8 * width, 2, rngs)
        self.output = nnx.Linear(
            8 * width,
            specification.classes,
            kernel_init=nnx.with_metadata(nnx.initializers.lecun_normal(), axes=("embed", None)),
            rngs=rngs,
        )

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to float32 logits `[batch, classes]`.

        With batch normalization and `train`, the running averages are updated in place. `keys` are
        unused: there is no dropout.
        """
        x = nnx.relu(normalize(self.stem_norm, self.stem(inputs), train)).astype(self.dtype)
        if not self.small:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = constrain(x, "batch", None, None, None)  # [batch, height, width, channels]
        for stage in (self.stage_1, self.stage_2, self.stage_3, self.stage_4):
            x = stage(x, train)  # [batch, height / 2, width / 2, 2 * channels] after the first
        x = x.astype(jnp.float32).mean(axis=(1, 2))  # [batch, channels]
        return constrain(self.output(x), "batch", None)


class Stage(nnx.Module):
    """Two residual blocks at one resolution."""

    def __init__(
        self, config: ResNetConfig, fan_in: int, fan_out: int, strides: int, rngs: nnx.Rngs
    ):
        self.first = Block(config, fan_in, fan_out, strides, rngs)
        self.second = Block(config, fan_out, fan_out, 1, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.second(self.first(x, train), train)


class Block(nnx.Module):
    """`relu(normalize(W_2 * relu(normalize(W_1 * x))) + shortcut(x))`, 3x3 convolutions."""

    def __init__(
        self, config: ResNetConfig, fan_in: int, fan_out: int, strides: int, rngs: nnx.Rngs
    ):
        self.dtype = jnp.dtype(config.dtype)
        # Channels between the two are split over `tensor`; those of the residual stream are whole.
        self.first = convolution(config, fan_in, fan_out, 3, strides, ("embed", "mlp"), rngs)
        self.first_norm = normalization(config, fan_out, rngs)
        self.second = convolution(config, fan_out, fan_out, 3, 1, ("mlp", "embed"), rngs)
        self.second_norm = normalization(config, fan_out, rngs)
        self.projects = strides != 1 or fan_in != fan_out
        if self.projects:
            self.shortcut = convolution(config, fan_in, fan_out, 1, strides, ("embed", None), rngs)
            self.shortcut_norm = normalization(config, fan_out, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        residual = nnx.relu(normalize(self.first_norm, self.first(x), train))
        residual = constrain(residual, "batch", None, None, "mlp")
        residual = normalize(self.second_norm, self.second(residual), train)
        if self.projects:
            x = normalize(self.shortcut_norm, self.shortcut(x), train)
        x = nnx.relu(residual + x).astype(self.dtype)
        return constrain(x, "batch", None, None, None)


def normalization(
    config: ResNetConfig, channels: int, rngs: nnx.Rngs
) -> nnx.GroupNorm | nnx.BatchNorm:
    """Returns a normalization in float32, with a scale and a bias for every channel."""
    if config.normalization == "group":
        return nnx.GroupNorm(channels, config.groups, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)


def normalize(norm: nnx.GroupNorm | nnx.BatchNorm, x: jax.Array, train: bool) -> jax.Array:
    """Normalizes `x` `[batch, height, width, channels]`; batch statistics only where `train`."""
    if isinstance(norm, nnx.BatchNorm):
        return norm(x, use_running_average=not train)
    return norm(x)


def convolution(
    config: ResNetConfig,
    fan_in: int,
    fan_out: int,
    kernel: int,
    strides: int,
    axes: tuple[str | None, str | None],
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Returns a convolution without bias, `kernel` pixels a side, padded by half a kernel."""
    # Variance 2 / fan-out: He et al., 2015, arXiv:1502.01852, equation 14, as torchvision has it.
    weights = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nnx.Conv(
        fan_in,
        fan_out,
        kernel_size=(kernel, kernel),
        strides=(strides, strides),
        padding=((kernel // 2, kernel // 2), (kernel // 2, kernel // 2)),
        use_bias=False,
        kernel_init=nnx.with_metadata(weights, axes=(None, None, *axes)),
        dtype=jnp.dtype(config.dtype),
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of `number` that is not above `limit` (1 at least)."""
    return next((n for n in range(min(number, limit), 1, -1) if number % n == 0), 1)
