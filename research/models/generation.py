"""Text from a language model, token by token.

The window of the last `context` tokens is read anew for every token: no cache of keys and values to
keep in step with the model, at the price of one forward pass of the whole window a token.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.parallel.compilation import compile_together
from research.parallel.layout import constrain


def generate(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    state: Any,
    prompt: np.ndarray,
    length: int,
    context: int,
    key: jax.Array,
    temperature: float = 0.8,
    top_k: int | None = None,
    vocabulary: int | None = None,
) -> np.ndarray:
    """`length` tokens that follow `prompt` (tokens, at least one), int32 [length].

    `logits_of` maps `state` and tokens [1, context] to logits [1, context, classes]. A
    `temperature` of 0 takes the likeliest token; `top_k` draws from the k likeliest only;
    `vocabulary` leaves out the rows of a table that is larger than the vocabulary.
    """
    recent = np.asarray(prompt, np.int32)[-context:]
    window = np.zeros((context,), np.int32)
    window[: len(recent)] = recent
    sample = partial(_sample, temperature=temperature, top_k=top_k, vocabulary=vocabulary)

    @jax.jit
    def run(state: Any, window: jax.Array, filled: jax.Array, key: jax.Array) -> jax.Array:
        def next_token(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple:
            window, filled = carry
            # What stands behind the last token is not seen by it: attention is causal.
            token = sample(logits_of(state, window[None])[0, filled - 1], key)
            full = filled == context
            shifted = jnp.where(full, jnp.roll(window, -1), window)
            window = shifted.at[jnp.where(full, context - 1, filled)].set(token)
            return (window, jnp.minimum(filled + 1, context)), token

        tokens: jax.Array
        _, tokens = jax.lax.scan(next_token, (window, filled), jax.random.split(key, length))
        return constrain(tokens, None)  # whole everywhere, so that every process can read it

    arguments = (state, window, np.int32(len(recent)), key)
    return np.asarray(compile_together(run.lower(*arguments))(*arguments))


def _sample(
    logits: jax.Array,
    key: jax.Array,
    temperature: float,
    top_k: int | None,
    vocabulary: int | None,
) -> jax.Array:
    """One token of `logits` [classes]."""
    logits = logits[:vocabulary]
    if temperature == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    if top_k is not None and top_k < logits.shape[0]:
        least = jax.lax.top_k(logits, top_k)[0][-1]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
