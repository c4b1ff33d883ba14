"""Two small convolutional networks for small images.

`mcmahan` is the CNN of McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data", 2017, arXiv:1602.05629, section 3:

    5x5 convolution to 32 channels, ReLU, 2x2 max pooling
    5x5 convolution to 64 channels, ReLU, 2x2 max pooling
    512 units, ReLU; logits                                   1,663,370 parameters on MNIST

`lenet` is LeNet-5 of LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to
Document Recognition", 1998, as it is taught today: ReLU for tanh, max pooling for the learned
averages, full connections between the convolutions, a softmax for the Gaussian outputs:

    5x5 convolution to 6 channels, ReLU, 2x2 max pooling
    5x5 convolution to 16 channels, ReLU, 2x2 max pooling
    120 units, ReLU; 84 units, ReLU; logits                   61,706 parameters on MNIST

Convolutions are padded to keep the size, except LeNet's second one, which has no padding in the
paper and here, where the image is large enough (12 pixels or more a side).
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

KERNEL = 5  # pixels a side, in both papers

# Channels of the two convolutions, units of the hidden layers.
SIZES: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "mcmahan": ((32, 64), (512,)),
    "lenet": ((6, 16), (120, 84)),
}


@dataclass(frozen=True)
class CNNConfig:
    """A small convolutional network: two convolutions, then hidden layers."""

    kind: Literal["lenet", "mcmahan"] = "mcmahan"
    """Which network: LeNet-5 (0.06 million parameters) or that of McMahan et al. (1.7 million)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and logits are always float32."""

    def build(self, specification: Specification, key: jax.Array) -> "CNN":
        """Returns the model with parameters drawn from `key`.

        Raises `UserError` where examples are not images of at least 4 x 4 pixels.
        """
        height, width, _ = image_shape(specification, "the cnn")
        if min(height, width) < 4:
            raise UserError(
                f"the cnn halves its image twice and needs 4 x 4 pixels or more, not "
                f"{height} x {width}: use the mlp or linear model"
            )
        return CNN(self, specification, nnx.Rngs(key))


class CNN(Model):
    """A small convolutional network; see the file's head."""

    def __init__(self, config: CNNConfig, specification: Specification, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        height, width, channels = image_shape(specification, "the cnn")
        (first, second), units = SIZES[config.kind]
        # He et al., 2015, arXiv:1502.01852: variance 2 / fan-in keeps the scale through ReLUs.
        weights = nnx.initializers.he_normal()

        def convolution(
            fan_in: int, fan_out: int, padding: str, axes: tuple[str | None, str | None]
        ) -> nnx.Conv:
            return nnx.Conv(
                fan_in,
                fan_out,
                kernel_size=(KERNEL, KERNEL),
                padding=padding,
                kernel_init=nnx.with_metadata(weights, axes=(None, None, *axes)),
                dtype=dtype,
                conv_general_dilated=convolve,
                rngs=rngs,
            )

        def dense(fan_in: int, fan_out: int, axes: tuple[str | None, str | None]) -> nnx.Linear:
            return nnx.Linear(
                fan_in,
                fan_out,
                kernel_init=nnx.with_metadata(weights, axes=axes),
                dtype=dtype,
                rngs=rngs,
            )

        self.first = convolution(channels, first, "SAME", ("embed", "mlp"))
        height, width = height // 2, width // 2
        valid = config.kind == "lenet" and min(height, width) >= KERNEL + 1
        self.second = convolution(first, second, "VALID" if valid else "SAME", ("mlp", "embed"))
        if valid:
            height, width = height - KERNEL + 1, width - KERNEL + 1
        fan_in = (height // 2) * (width // 2) * second
        # The tensor axis splits every other layer by columns, the next by rows (see mlp.py).
        self.hidden = dense(fan_in, units[0], ("embed", "mlp"))
        self.deep = len(units) == 2
        if self.deep:
            self.second_hidden = dense(units[0], units[1], ("mlp", "embed"))
        self.output = nnx.Linear(
            units[-1],
            specification.classes,
            kernel_init=nnx.with_metadata(
                nnx.initializers.lecun_normal(), axes=("embed" if self.deep else "mlp", None)
            ),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps images `[batch, height, width, channels]` to float32 logits `[batch, classes]`.

        `train` and `keys` change nothing: there is no dropout and no normalization.
        """
        x = nnx.relu(max_pool(self.first(inputs)))  # [batch, height / 2, width / 2, channels]
        x = constrain(x, "batch", None, None, "mlp")
        x = nnx.relu(max_pool(self.second(x)))  # [batch, height / 4, width / 4, channels]
        x = constrain(x, "batch", None, None, None)
        x = x.reshape(x.shape[0], -1)  # [batch, features]
        x = constrain(nnx.relu(self.hidden(x)), "batch", "mlp")  # [batch, units]
        if self.deep:
            x = constrain(nnx.relu(self.second_hidden(x)), "batch", None)
        logits = self.output(x)  # [batch, classes]
        return constrain(logits.astype(jnp.float32), "batch", None)


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum of every 2x2 window: `[batch, h, w, c]` to `[batch, h // 2, w // 2, c]`.

    An odd last row or column is dropped, as in LeNet. Written as a reshape and a maximum because
    the gradient of `reduce_window` is slow on a CPU. The maximum before the ReLU equals the maximum
    after it, on a quarter of the numbers; equal maxima share their gradient.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.max(axis=(2, 4))
