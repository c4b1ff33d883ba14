"""What a learner asks of every model, and what models share."""

from typing import NamedTuple

import jax
from flax import nnx

LAYERS = "blocks"
"""Name, among the parameters of a model, of those that are stacked over its layers."""


class Extras(NamedTuple):
    """What a pass yields beside its logits, as sums over the examples of the batch.

    Sums, so that microbatches and devices add up; a step reports each divided by the number of
    targets.
    """

    penalties: dict[str, jax.Array]  # [] float32 each, nats: added to the sum of losses
    statistics: dict[str, jax.Array]  # float32: only reported


class Model(nnx.Module):
    """A module from inputs [batch, ...] to float32 logits [batch, ..., classes].

    `train` is true in training; `keys` [batch] then draw each example's dropout, so that an
    example's draws do not depend on what it is batched with, nor on the device it lies on.
    """

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        raise NotImplementedError

    def forward(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        """The logits, and what the model adds to the objective or reports: here nothing."""
        return self(inputs, train=train, keys=keys), Extras({}, {})


def drop(x: jax.Array, rate: float, keys: jax.Array | None, place: int | jax.Array) -> jax.Array:
    """Dropout (Srivastava et al. 2014) of `rate` on `x` [batch, ...], each example by its own key.

    `place` tells the dropouts of a model apart. Without keys, `x` itself.
    """
    if keys is None or rate == 0:
        return x

    def kept(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x.shape[1:])

    return jax.numpy.where(jax.vmap(kept)(keys), x / (1 - rate), 0).astype(x.dtype)
