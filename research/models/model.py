"""What a learner asks of every model, and what models share."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, NamedTuple

import jax
from flax import nnx

from research.models.specification import Specification

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

    splits: ClassVar[tuple[str, ...]] = ("batch",)
    """Logical axes of the activations that it splits over a mesh."""

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        raise NotImplementedError

    def forward(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        """The logits, and what the model adds to the objective or reports: here nothing."""
        return self(inputs, train=train, keys=keys), Extras({}, {})

    def arrange(self, targets: jax.Array) -> jax.Array:
        """`targets` [batch, ...] in the order of the logits of `forward`, which may be another than
        that of the inputs where a mesh splits an example: here the same."""
        return targets

    def check_mesh(self, specification: Specification) -> None:
        """Raises UserError where examples of `specification` do not divide over the mesh in force:
        here they are not divided."""


_dropout: ContextVar[jax.Array | None] = ContextVar("dropout", default=None)


@contextmanager
def dropping(rate: jax.Array | None) -> Iterator[None]:
    """A context in which `drop` is traced with `rate` [] in place of the model's own (None: with
    that). It is for models of one program whose rates differ."""
    token = _dropout.set(rate)
    try:
        yield
    finally:
        _dropout.reset(token)


def drops(rate: float) -> bool:
    """Whether a model of this `rate` drops anything at all."""
    return rate > 0 or _dropout.get() is not None


def drop(x: jax.Array, rate: float, keys: jax.Array | None, place: int | jax.Array) -> jax.Array:
    """Dropout (Srivastava et al. 2014) of `rate` on `x` [batch, ...].

    `keys` [batch] draw for every example, or [batch, sequence] for every token of it; `place` tells
    the dropouts of a model apart. Without keys, `x` itself.
    """
    if keys is None or not drops(rate):
        return x
    own = _dropout.get()
    keep = 1 - (rate if own is None else own)

    def kept(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, place), keep, x.shape[keys.ndim :])

    draw = kept
    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return jax.numpy.where(draw(keys), x / keep, 0).astype(x.dtype)
