"""PATE: labels by the noisy votes of teachers who each saw other examples.

Papernot, Song, Mironov, Raghunathan, Talwar and Erlingsson 2018, *Scalable Private Learning with
PATE*, arXiv:1802.08908, definition 6 (the GNMax aggregator). Of M teachers, taught by disjoint
parts of private examples, n_k say that x is of class k, and a student learns from public examples

    y = argmax_k n_k(x) + N(0, σ²)

One private example is in the part of one teacher. Without it, that teacher's vote may go from one
class to another, which moves (n_1, ..., n_K) by √2 at most: a label is a Gaussian mechanism with
the noise multiplier σ/√2 for every example, and T labels are T of them. (So all labels cost alike;
that those which teachers agree on tell less is what the paper's data-dependent analysis uses.)
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from research.exchange.privacy import Event

SENSITIVITY = math.sqrt(2)


def noisy_votes(log_p: jax.Array, deviation: float, keys: jax.Array) -> jax.Array:
    """int32 [n]: the classes that teachers of `log_p` [members, n, classes] vote for, with noise of
    so large a `deviation` (votes) drawn by `keys` [n]. A frozen member, whose log-probabilities are
    nan, has no vote."""
    chosen = jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1])
    votes = jnp.sum(jnp.where(jnp.isnan(log_p), 0, chosen), axis=0)  # [n, classes]
    noise = jax.vmap(lambda key: jax.random.normal(key, (log_p.shape[-1],)))(keys)
    return jnp.argmax(votes + deviation * noise, axis=-1).astype(jnp.int32)


def spent(deviation: float, labels: int) -> list[tuple[Event, int]]:
    """What so many `labels` release, as a ledger has it."""
    return [(Event(float(np.float32(deviation / SENSITIVITY)), 1.0), labels)]
