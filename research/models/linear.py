"""Softmax regression: one affine map from features to logits.

Also called multinomial logistic regression (Cox, "The regression analysis of binary sequences",
1958, has the two-class form). The loss is convex, so every algorithm that averages can be compared
with the exact optimum; it is the convex model of Li et al., "Federated Optimization in
Heterogeneous Networks", 2020, arXiv:1812.06127 (MNIST: 7,850 parameters).

    logits = x W + b            W [features, classes], b [classes]
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.models.inputs import flatten
from research.models.model import Model
from research.models.specification import Specification
from research.parallel.layout import constrain


@dataclass(frozen=True)
class LinearConfig:
    """Softmax regression."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the multiplication; parameters and logits are always float32."""

    def build(self, specification: Specification, key: jax.Array) -> "Linear":
        """Returns the model with all parameters zero; `key` is unused.

        Zero is the customary start of a convex problem, and makes every replica start alike.
        """
        return Linear(self, specification, nnx.Rngs(key))


class Linear(Model):
    """Softmax regression; see the file's head."""

    def __init__(self, config: LinearConfig, specification: Specification, rngs: nnx.Rngs):
        self.output = nnx.Linear(
            math.prod(specification.shape),
            specification.classes,
            kernel_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=("embed", None)),
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps float inputs `[batch, *shape]` to float32 logits `[batch, classes]`.

        `train` and `keys` change nothing: there is no dropout and no normalization.
        """
        features = flatten(inputs, "the linear model")  # [batch, features]
        logits = self.output(features)  # [batch, classes]
        return constrain(logits.astype(jnp.float32), "batch", None)
