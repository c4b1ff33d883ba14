"""The objective of every model here: cross-entropy, as a sum and a count.

Never a local mean: means of unequal parts (an uneven last batch, masked tokens, microbatches) do
not average to the mean of the whole, sums and counts add up to it on any mesh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Totals(NamedTuple):
    """Sums over examples (or tokens); `a + b` of two parts is the total of the whole."""

    loss: jax.Array  # [] float32, nats
    correct: jax.Array  # [] float32
    targets: jax.Array  # [] float32, how many

    def add(self, other: "Totals") -> "Totals":
        return Totals(*(mine + its for mine, its in zip(self, other, strict=True)))


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    soft: jax.Array | None = None,
) -> Totals:
    """Cross-entropy of `logits` [batch, ..., classes] (float32) against `targets` [batch, ...].

    `weights` [batch] counts each example (and all its tokens) that many times; None counts each
    once. With the probabilities `soft` [batch, ..., classes] of a teacher the loss is against those
    (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, at temperature 1).
    """
    return Totals(*(jnp.sum(term) for term in _terms(logits, targets, weights, soft)))


def cross_entropies(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> Totals:
    """As `cross_entropy`, of each example: [batch] each."""
    terms = _terms(logits, targets, weights)
    return Totals(*(jnp.sum(term, axis=tuple(range(1, term.ndim))) for term in terms))


def _terms(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None,
    soft: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is summed, [batch, ...] each."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = logits - highest
    log_normalizer = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))  # [batch, ...]
    # A masked sum, not a gather: its gradient is elementwise, and a vocabulary split over devices
    # stays split.
    chosen = targets[..., None] == jnp.arange(logits.shape[-1])
    wanted = jnp.where(chosen, shifted, 0.0) if soft is None else soft * shifted
    losses = log_normalizer - jnp.sum(wanted, axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    each = jnp.ones((targets.shape[0],), jnp.float32) if weights is None else weights
    each = jnp.broadcast_to(each.reshape((-1,) + (1,) * (targets.ndim - 1)), targets.shape)
    return losses * each, correct * each, each
