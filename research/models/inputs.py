"""What the models of tables and images ask of their inputs, checked in one place."""

import jax
import jax.numpy as jnp

from research.errors import UserError
from research.models.specification import Specification


def flatten(inputs: jax.Array, model: str) -> jax.Array:
    """Flattens every example: `[batch, *shape]` to `[batch, features]`.

    Raises `UserError` for whole numbers: a token is a name, not a quantity, and a model that
    multiplies it by a weight would train without an error and learn nothing.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise UserError(
            f"{model} learns from real numbers (tables, images) but the data gives {inputs.dtype} "
            f"of shape {inputs.shape}: use the transformer for text, or another data set"
        )
    return inputs.reshape(inputs.shape[0], -1)


def image_shape(specification: Specification, model: str) -> tuple[int, int, int]:
    """Returns `(height, width, channels)`, or raises `UserError` where examples are no images."""
    if len(specification.shape) != 3:
        raise UserError(
            f"{model} needs images of shape (height, width, channels) but the data's examples have "
            f"shape {specification.shape}: use an image data set, or the mlp or linear model"
        )
    height, width, channels = specification.shape
    return height, width, channels
