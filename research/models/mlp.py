"""The multilayer perceptron.

With its default widths this is the "2NN" of McMahan, Moore, Ramage, Hampson and Agüera y Arcas,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
arXiv:1602.05629: two hidden layers of 200 ReLU units, 199,210 parameters on MNIST.

    h_0 = x,   h_i = dropout(activation(h_{i-1} W_i + b_i)),   logits = h_n W + b

Hidden layers are split over `tensor` in pairs, as in Shoeybi et al., "Megatron-LM", 2019,
arXiv:1909.08053: the first by columns, the second by rows, one all-reduce a pair.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.errors import UserError
from research.models.inputs import flatten
from research.models.model import Model, drop
from research.models.specification import Specification
from research.parallel.layout import constrain

ACTIVATIONS = {"relu": nnx.relu, "gelu": nnx.gelu, "tanh": jnp.tanh}

# Gain of the initial variance, gain / fan-in: He et al., 2015, arXiv:1502.01852 for the rectifiers,
# LeCun et al., "Efficient BackProp", 1998 for tanh.
GAINS = {"relu": 2.0, "gelu": 2.0, "tanh": 1.0}


@dataclass(frozen=True)
class MLPConfig:
    """The multilayer perceptron."""

    widths: tuple[int, ...] = (200, 200)
    """Units of each hidden layer, first to last."""

    activation: Literal["relu", "gelu", "tanh"] = "relu"
    """Function after each hidden layer (gelu in its tanh approximation)."""

    dropout: float = 0.0
    """Probability that a hidden unit is set to zero in training, in [0, 1)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and logits are always float32."""

    def build(self, specification: Specification, key: jax.Array) -> "MLP":
        """Returns the model with parameters drawn from `key`.

        Raises `UserError` for a width below 1, or dropout outside [0, 1).
        """
        if any(width < 1 for width in self.widths):
            raise UserError(f"mlp widths are {self.widths}: each hidden layer needs 1 unit or more")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"mlp dropout is {self.dropout}: it must be 0 or more and below 1")
        return MLP(self, specification, nnx.Rngs(key))


class MLP(Model):
    """The multilayer perceptron; see the file's head."""

    def __init__(self, config: MLPConfig, specification: Specification, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        weights = nnx.initializers.variance_scaling(
            GAINS[config.activation], "fan_in", "truncated_normal"
        )
        fan_in, name = math.prod(specification.shape), "embed"
        layers = {}
        for index, width in enumerate(config.widths):
            units = hidden_axis(index)
            layers[f"layer_{index}"] = nnx.Linear(
                fan_in,
                width,
                kernel_init=nnx.with_metadata(weights, axes=(name, units)),
                dtype=dtype,
                rngs=rngs,
            )
            fan_in, name = width, units
        self.hidden = nnx.Dict(layers)
        self.output = nnx.Linear(
            fan_in,
            specification.classes,
            kernel_init=nnx.with_metadata(nnx.initializers.lecun_normal(), axes=(name, None)),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps float inputs `[batch, *shape]` to float32 logits `[batch, classes]`.

        Units are dropped only where `train` is true and `keys` are given.
        """
        activation = ACTIVATIONS[self.config.activation]
        x = flatten(inputs, "the mlp")  # [batch, features]
        for index in range(len(self.config.widths)):
            x = activation(self.hidden[f"layer_{index}"](x))  # [batch, width]
            # A layer split by rows leaves every device the whole sum.
            x = constrain(x, "batch", "mlp" if hidden_axis(index) == "mlp" else None)
            if train:
                x = drop(x, self.config.dropout, keys, index)
        logits = self.output(x)  # [batch, classes]
        return constrain(logits.astype(jnp.float32), "batch", None)


def hidden_axis(index: int) -> str:
    """Returns the logical axis of the units of hidden layer `index`: split, whole, split, ..."""
    return "mlp" if index % 2 == 0 else "embed"


def narrowed(parameters: Any, units: jax.Array) -> Any:
    """The `parameters` of an MLP of which only the first `units` [] of every hidden layer are
    used: they start as an MLP of that width does, all others at 0, where they stay."""
    hidden = parameters["hidden"]
    layers = [*(hidden[f"layer_{index}"] for index in range(len(hidden))), parameters["output"]]
    made, before = [], None
    for layer in layers:
        kernel, bias = layer["kernel"], layer["bias"]  # [fan-in, fan-out], [fan-out]
        if before is not None:  # its fan-in is smaller, and so its variance larger
            kernel = kernel * before[:, None] * jnp.sqrt(before.size / units)
        before = jnp.arange(kernel.shape[1]) < units
        if layer is not layers[-1]:
            kernel, bias = kernel * before, bias * before
        made.append(layer | {"kernel": kernel, "bias": bias})
    of_hidden = {f"layer_{index}": layer for index, layer in enumerate(made[:-1])}
    return parameters | {"hidden": of_hidden, "output": made[-1]}
