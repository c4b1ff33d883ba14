"""Routing: which experts a token goes to, and what keeps them evenly busy.

Shazeer et al. 2017, *Outrageously large neural networks: the sparsely-gated mixture-of-experts
layer*, arXiv:1701.06538; the weights of the chosen as in Mixtral, Jiang et al. 2024,
arXiv:2401.04088; the balance of Switch Transformers, Fedus et al. 2021, arXiv:2101.03961, section
2.2; the z-loss of ST-MoE, Zoph et al. 2022, arXiv:2202.08906, section 3.

    h(x) = W_r x,   p(x) = softmax(h(x))                                        over N experts
    T = the k largest of p,   g_e(x) = p_e(x) / Σ_T p                           for e in T
                              g_e(x) = p_e(x)                                   where k = 1
    y = Σ_T g_e(x) E_e(x)
    L_balance = N · Σ_e f_e · P_e,   L_z = 1/S · Σ_x (log Σ_e exp h_e(x))²      of S tokens

With one expert a token the quotient would be 1, and no loss of the task would reach the router: its
output is weighed by p_e itself (Switch Transformers, eq. 2).

f_e is the share of the S·k assignments that go to expert e, and P_e the mean of p_e. Both are taken
over one sequence: what an example adds to the loss does not depend on what it is batched with.
L_balance is 1 where every expert is as likely as any other, and N where one takes all and k = 1.

All of it is computed in float32 (Switch Transformers, section 2.4): a choice is discrete, and
rounding would make it. Nothing here crosses the wire.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """Of every token, in float32."""

    logits: jax.Array  # [batch, sequence, experts]
    probabilities: jax.Array  # [batch, sequence, experts]
    experts: jax.Array  # [batch, sequence, k] int32, the likeliest first
    weights: jax.Array  # [batch, sequence, k], their sum is 1 (of one: its probability)


def route(x: jax.Array, router: jax.Array, k: int) -> Routing:
    """Where `x` [batch, sequence, width] goes by `router` [width, experts]: to `k` experts each."""
    logits = jnp.matmul(
        x.astype(jnp.float32), router.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    probabilities = jax.nn.softmax(logits)
    chosen, experts = _largest(probabilities, k)
    weights = chosen if k == 1 else chosen / jnp.sum(chosen, axis=-1, keepdims=True)
    return Routing(logits, probabilities, experts, weights)


def _largest(probabilities: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The `k` largest of the last dimension, and which they are: the first of equal ones first.

    `jax.lax.top_k` is a custom call on a CPU, for which the tokens of all devices are gathered.
    """
    left, experts = jax.lax.stop_gradient(probabilities), []
    for _ in range(k):
        experts.append(jnp.argmax(left, axis=-1))
        left = jnp.where(jax.nn.one_hot(experts[-1], left.shape[-1], dtype=bool), -1.0, left)
    which = jnp.stack(experts, axis=-1)
    chosen = jax.nn.one_hot(which, left.shape[-1], dtype=probabilities.dtype)
    return jnp.einsum("...e,...ke->...k", probabilities, chosen, precision="highest"), which


def loads(routing: Routing) -> jax.Array:
    """f [batch, experts]: the share of a sequence's assignments that every expert gets."""
    count = routing.logits.shape[-1]
    return jnp.mean(jax.nn.one_hot(routing.experts, count, dtype=jnp.float32), axis=(1, 2))


def balance(routing: Routing) -> jax.Array:
    """L_balance [batch] of every sequence (Switch Transformers, eq. 4)."""
    mean = jnp.mean(routing.probabilities, axis=1)  # P [batch, experts]
    # f counts choices and has no gradient: what is learned, is learned through P.
    return mean.shape[-1] * jnp.sum(loads(routing) * mean, axis=-1)


def z(routing: Routing) -> jax.Array:
    """L_z [batch] of every sequence (ST-MoE, eq. 5)."""
    return jnp.mean(jnp.square(jax.nn.logsumexp(routing.logits, axis=-1)), axis=-1)


def entropy(routing: Routing) -> jax.Array:
    """Mean entropy [batch] of p over a sequence (nats; log N where the router knows nothing)."""
    logarithms = jax.nn.log_softmax(routing.logits)
    return -jnp.mean(jnp.sum(routing.probabilities * logarithms, axis=-1), axis=-1)
