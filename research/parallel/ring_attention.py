"""Ring attention: causal attention over a sequence that is split over devices.

Liu et al. 2023, *Ring attention with blockwise transformers for near-infinite context*,
arXiv:2310.01889; balanced, as Brandon et al. 2023, *Striped attention*, arXiv:2311.09431, first did
it, but in Llama 3's zig-zag order (Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2).

The sequence is cut into 2·C chunks for C devices; device i holds chunk i (`low`) and chunk 2·C-1-i
(`high`). Keys and values go round the ring: at step s device i works on those of j = i - s (mod C).

    s = 0    low × low and high × high, causal;  high × low, whole
    s > 0    high × low, whole;  low × low, whole, if i > j,  else high × high, whole

So every device computes two whole blocks at every step, and none is masked away. The softmax is put
together from blocks (Milakov and Gimelshein 2018, arXiv:1805.02867): with l_b the logarithm of a
block's normalizer and o_b its output,

    l = log Σ_b exp(l_b)        o = Σ_b exp(l_b - l) · o_b

The backward pass goes round once more, with P = exp(scores - l) computed again (Dao et al. 2022,
arXiv:2205.14135, Algorithm 4); the gradients of keys and values travel with them and come home:

    dV = Pᵀ dO        dS = P ∘ (dO Vᵀ - rowsum(dO ∘ O))        dQ = dS K        dK = dSᵀ Q

On the wire, sent by each device, with k the bytes of its keys (and as many of values) and k₃₂ those
of them in float32: forward (C - 1) · 2k, backward (C - 1) · 2k + C · 2k₃₂. Collective-permutes over
`context`, nothing else; XLA's CPU backend sends bfloat16 as float32. In memory: a device's part of
q, k, v and o, and the scores of `BLOCK` rows to one chunk of keys, so that all of it falls with C.

It is array code on a leading dimension of C that is split over `context`: a step of the ring is a
roll of it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

LOW, HIGH = 0, 1
BLOCK = 256
"""Rows of scores that are in memory at a time, for each head."""

# Queries are [half, context, batch, key_value_heads, group, rows, features], keys and values
# [half, context, batch, key_value_heads, rows, features]: a group of query heads shares them.


def zigzag(length: int, parts: int) -> np.ndarray:
    """The positions of a sequence in the order in which it lies on `parts` devices, int32 [length].

    `2 · parts` must divide `length`.
    """
    first = np.arange(parts)
    chunks = np.stack([first, 2 * parts - 1 - first], axis=1).reshape(-1)
    size = length // (2 * parts)
    return (chunks[:, None] * size + np.arange(size)).reshape(-1).astype(np.int32)


def ring_attention(query: jax.Array, key: jax.Array, value: jax.Array, parts: int) -> jax.Array:
    """Causal attention of `query` [batch, sequence, heads, features] in zig-zag order.

    `key` and `value` [batch, sequence, key_value_heads, features] may have fewer heads, by a whole
    factor. The sequence is in the order of `zigzag(sequence, parts)`, split over the mesh axis
    `context` of `parts` devices; other dimensions may be split over other axes. Scores are divided
    by √features; products take operands of the type of the queries and add up in float32, the
    softmax is float32. Returns the shape and type of `query`.
    """
    key_value_heads = key.shape[2]

    def cut(x: jax.Array) -> jax.Array:
        batch, length, heads, features = x.shape
        group = heads // key_value_heads
        x = x.reshape(batch, parts, 2, length // (2 * parts), key_value_heads, group, features)
        return _split(x.transpose(2, 1, 0, 4, 5, 3, 6))

    out = _ring(cut(query), cut(key)[..., 0, :, :], cut(value)[..., 0, :, :])
    # -> [batch, context, half, rows, key_value_heads, group, features]
    return out.transpose(2, 1, 0, 5, 3, 4, 6).reshape(query.shape)


class Part(NamedTuple):
    """Attention of some rows to some keys: a softmax over these alone."""

    out: jax.Array  # [..., rows, features] float32
    log_normalizer: jax.Array  # [..., rows, 1] float32


class Rows(NamedTuple):
    """What the backward pass knows of some rows of queries."""

    query: jax.Array  # [..., rows, features]
    gradient: jax.Array  # [..., rows, features], of their outputs
    log_normalizer: jax.Array  # [..., rows, 1] float32
    inner: jax.Array  # [..., rows, 1] float32: rowsum(dO ∘ O)


@jax.custom_vjp
def _ring(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _ring_forward(query, key, value)[0]


def _ring_forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    low, high = (_attend(*each, causal=True) for each in zip(query, key, value, strict=True))
    high = _merge(high, _attend(query[HIGH], key[LOW], value[LOW]))

    def step(state: tuple[Part, Part], moved: Any, s: jax.Array) -> tuple[Part, Part]:
        low, high = state
        key, value = moved
        high = _merge(high, _attend(query[HIGH], key[LOW], value[LOW]))
        choose = _chooser(query, s)
        block = _attend(choose(*query), choose(*key), choose(*value))
        merged = _merge(jax.tree.map(choose, low, high), block)
        return jax.tree.map(choose, merged, low), jax.tree.map(choose, high, merged)

    low, high = _around(step, (low, high), (key, value))
    out, log_normalizer = map(jnp.stack, zip(low, high, strict=True))
    out = out.astype(query.dtype)
    return out, (query, key, value, out, log_normalizer)


def _ring_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, out, log_normalizer = saved
    inner = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1, keepdims=True)
    rows = Rows(query, gradient, log_normalizer, inner)
    low, high = (Rows(*each) for each in zip(*rows, strict=True))

    own = [_gradients(*each, causal=True) for each in zip((low, high), key, value, strict=True)]
    first = _gradients(high, key[LOW], value[LOW])
    of_query = jnp.stack([own[LOW][0], own[HIGH][0] + first[0]])
    of_key = jnp.stack([own[LOW][1] + first[1], own[HIGH][1]])
    of_value = jnp.stack([own[LOW][2] + first[2], own[HIGH][2]])

    def step(state: Any, moved: Any, s: jax.Array) -> Any:
        of_query, travelling = state
        of_key, of_value = _next(travelling)  # to where their keys and values are now
        key, value = moved
        choose = _chooser(query, s)
        first = _gradients(high, key[LOW], value[LOW])
        chosen = Rows(*(choose(*each) for each in rows))
        second = _gradients(chosen, choose(*key), choose(*value))

        def add(sums: jax.Array, first: jax.Array, half: int, second: jax.Array) -> jax.Array:
            nothing = jnp.zeros_like(second)
            halves = [choose(second, nothing), choose(nothing, second)]
            halves[half] += first
            return sums + jnp.stack(halves)

        of_query = add(of_query, first[0], HIGH, second[0])
        of_key = add(of_key, first[1], LOW, second[1])
        of_value = add(of_value, first[2], LOW, second[2])
        return of_query, (of_key, of_value)

    of_query, travelled = _around(step, (of_query, (of_key, of_value)), (key, value))
    of_key, of_value = _next(travelled)
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype)


_ring.defvjp(_ring_forward, _ring_backward)


# Round the ring -------------------------------------------------------------------------------


def _around(step: Callable[[Any, Any, jax.Array], Any], state: Any, moved: Any) -> Any:
    """`state = step(state, moved, s)` for s = 1 .. C-1, where `moved` has come s devices far.

    What the next step needs is on its way while the present one computes.
    """
    parts = jax.tree.leaves(moved)[0].shape[1]
    if parts == 1:
        return state

    def body(carry: tuple[Any, Any], s: jax.Array) -> tuple[tuple[Any, Any], None]:
        state, moved = carry
        following = _next(moved)
        return (step(state, moved, s), following), None

    steps = jnp.arange(1, parts - 1)
    (state, moved), _ = jax.lax.scan(body, (state, _next(moved)), steps)
    return step(state, moved, jnp.int32(parts - 1))


def _next(tree: Any) -> Any:
    """Everything moved on by one device."""
    return jax.tree.map(lambda x: _split(jnp.roll(x, 1, axis=1)), tree)


def _chooser(query: jax.Array, s: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """At step s: the first of two arrays [context, ...] on devices i > j, the second on i < j."""
    after = jnp.arange(query.shape[1]) >= s  # j = i - s, not taken round

    def choose(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.where(after.reshape(-1, *(1,) * (first.ndim - 1)), first, second)

    return choose


def _split(x: jax.Array) -> jax.Array:
    """`x` [half, context, ...] split over `context`, and over the rest as it comes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "context" not in mesh.shape or mesh.shape["context"] == 1:
        return x
    free = P.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, P(None, "context", *(free,) * (x.ndim - 2)))


# One block ------------------------------------------------------------------------------------


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool = False) -> Part:
    def rows(_: None, block: tuple[jax.Array, jax.Array]) -> tuple[None, Part]:
        query, start = block
        scores = _scores(query, key, start if causal else None)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _product("...grk,...kd->...grd", weights.astype(value.dtype), value) / total
        return None, Part(out, highest + jnp.log(total))

    _, parts = jax.lax.scan(rows, None, _blocks(query))
    return jax.tree.map(_joined, parts)


def _merge(first: Part, second: Part) -> Part:
    log_normalizer = jnp.logaddexp(first.log_normalizer, second.log_normalizer)
    shares = [jnp.exp(part.log_normalizer - log_normalizer) for part in (first, second)]
    return Part(shares[0] * first.out + shares[1] * second.out, log_normalizer)


def _gradients(
    rows: Rows, key: jax.Array, value: jax.Array, causal: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a block adds to the gradients of queries, keys and values, float32."""
    scale = 1 / math.sqrt(key.shape[-1])

    def some(sums: Any, block: tuple[Rows, jax.Array]) -> tuple[Any, jax.Array]:
        (query, gradient, log_normalizer, inner), start = block
        weights = jnp.exp(_scores(query, key, start if causal else None) - log_normalizer)
        of_weights = _product("...grd,...kd->...grk", gradient, value)
        of_scores = (weights * (of_weights - inner) * scale).astype(query.dtype)
        of_key = _product("...grk,...grd->...kd", of_scores, query)
        of_value = _product("...grk,...grd->...kd", weights.astype(gradient.dtype), gradient)
        of_query = _product("...grk,...kd->...grd", of_scores, key)
        return (sums[0] + of_key, sums[1] + of_value), of_query

    nothing = jnp.zeros_like(key, jnp.float32), jnp.zeros_like(value, jnp.float32)
    (of_key, of_value), of_query = jax.lax.scan(some, nothing, _blocks(rows))
    return _joined(of_query), of_key, of_value


def _scores(query: jax.Array, key: jax.Array, start: jax.Array | None) -> jax.Array:
    """[..., group, rows, keys]; with a `start` those of the rows from there on of the keys' own
    chunk, which see no later key."""
    scores = _product("...grd,...kd->...grk", query, key) / math.sqrt(key.shape[-1])
    if start is None:
        return scores
    places = start + jnp.arange(query.shape[-2])
    return jnp.where(places[:, None] >= jnp.arange(key.shape[-2]), scores, -jnp.inf)


def _product(dimensions: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(dimensions, left, right, preferred_element_type=jnp.float32)


def _blocks(tree: Any) -> tuple[Any, jax.Array]:
    """[..., rows, features] as [blocks, ..., BLOCK, features], and the first row of each block.
    Rows that do not divide make one block."""
    rows = jax.tree.leaves(tree)[0].shape[-2]
    size = BLOCK if rows % BLOCK == 0 else rows

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, size, x.shape[-1]), -3, 0)

    return jax.tree.map(cut, tree), jnp.arange(0, rows, size)


def _joined(blocks: jax.Array) -> jax.Array:
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])
