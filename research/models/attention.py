"""Causal self-attention, also over a sequence that is split over devices.

Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245;
rotary positions: Su et al. 2021, arXiv:2104.09864. A split sequence is attended to in one of two
ways (Liu et al. 2023, arXiv:2310.01889; gathered keys and values as in Llama 3, Grattafiori et al.
2024, arXiv:2407.21783, section 3.3.2), of which the first has an order of its own.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from research.errors import UserError
from research.models.products import dot_general
from research.models.transformer_config import TransformerConfig
from research.parallel.layout import constrain, parts_of
from research.parallel.mesh import platform
from research.parallel.ring_attention import ring_attention, zigzag


def goes_round(config: TransformerConfig, length: int) -> bool:
    """Whether attention over `length` tokens is a ring on the mesh in force."""
    parts = parts_of("sequence")
    return config.context_parallelism == "ring" and parts > 1 and length % (2 * parts) == 0


def running_order(config: TransformerConfig, length: int) -> jax.Array:
    """The positions of `length` tokens in the order in which layers see them, int32 [length]."""
    if goes_round(config, length):
        return jnp.asarray(zigzag(length, parts_of("sequence")))
    return jnp.arange(length)


def arrange(config: TransformerConfig, x: jax.Array) -> jax.Array:
    """`x` [batch, sequence, ...] from the order of positions to that of `running_order`."""
    if not goes_round(config, x.shape[1]):
        return x
    return x[:, zigzag(x.shape[1], parts_of("sequence"))]


def arrange_back(config: TransformerConfig, x: jax.Array) -> jax.Array:
    """`x` [batch, sequence, ...] from the order of `running_order` to that of positions."""
    if not goes_round(config, x.shape[1]):
        return x
    return x[:, np.argsort(zigzag(x.shape[1], parts_of("sequence")))]


def check_context(config: TransformerConfig, length: int) -> None:
    """Raises UserError where attention to `length` tokens does not split over the mesh in force."""
    parts, halves = parts_of("sequence"), 2 if config.context_parallelism == "ring" else 1
    chunks = halves * parts
    if parts > 1 and config.attention == "cudnn":
        raise UserError(
            f"cudnn attends to whole sequences, not to one split over context {parts}: use "
            "--model.attention auto, or --mesh.context 1"
        )
    if parts == 1 or length % chunks == 0:
        return
    below, above = length - length % chunks, length + chunks - length % chunks
    smaller = math.gcd(parts, length // halves if length % halves == 0 else 1)
    product = f"{parts} × 2 chunks = {chunks}" if halves == 2 else f"{parts}"
    raise UserError(
        f"context {product} does not divide the sequence of {length} tokens: use --data.context "
        f"{f'{below} or ' if below else ''}{above}, or --mesh.context {smaller}"
    )


class Attention(nnx.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        heads, head_dim = config.heads, config.size_of_head
        key_value_heads = config.key_value_heads or heads

        def projection(heads: int, name: str) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                config.width,
                (heads, head_dim),
                use_bias=config.bias,
                dtype=jnp.dtype(config.dtype),
                dot_general=dot_general,
                kernel_init=nnx.initializers.normal(config.initial_deviation),
                kernel_metadata={"axes": ("embed", name, "head_dim")},
                bias_metadata={"axes": (name, "head_dim")},
                rngs=rngs,
            )

        self.query = projection(heads, "heads")
        self.key = projection(key_value_heads, "key_value_heads")
        self.value = projection(key_value_heads, "key_value_heads")
        self.output = nnx.LinearGeneral(
            (heads, head_dim),
            config.width,
            axis=(-2, -1),
            use_bias=config.bias,
            dtype=jnp.dtype(config.dtype),
            dot_general=dot_general,
            kernel_init=nnx.initializers.normal(config.residual_deviation),
            kernel_metadata={"axes": ("heads", "head_dim", "embed")},
            bias_metadata={"axes": (None,)},
            rngs=rngs,
        )
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        # [batch, sequence, width] -> [batch, sequence, heads, head_dim]
        query = constrain(self.query(x), "batch", "sequence", "heads", None)
        key = constrain(self.key(x), "batch", "sequence", "key_value_heads", None)
        value = constrain(self.value(x), "batch", "sequence", "key_value_heads", None)
        if self.config.positions == "rotary":
            positions = running_order(self.config, x.shape[1])
            query = rotate(query, positions, self.config.rope_theta)
            key = rotate(key, positions, self.config.rope_theta)
        mixed = constrain(self._mix(query, key, value), "batch", "sequence", "heads", None)
        return self.output(mixed)

    def _mix(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        parts = parts_of("sequence")
        if goes_round(self.config, query.shape[1]):
            # Fewer heads of keys than devices: each has a copy of those that its queries need.
            copies = math.lcm(key.shape[2], parts_of("heads")) // key.shape[2]
            if copies > 1:
                key, value = (
                    constrain(jnp.repeat(x, copies, axis=2), "batch", "sequence", "heads", None)
                    for x in (key, value)
                )
            return ring_attention(query, key, value, parts)
        if parts > 1:  # queries keep their part of the sequence
            key, value = gather_sequence(key), gather_sequence(value)
        attend: Callable[..., jax.Array] = partial(
            jax.nn.dot_product_attention,
            is_causal=True,
            implementation="xla" if parts > 1 else self._implementation(query.dtype),
        )
        if self.config.remat == "attention":
            attend = jax.checkpoint(attend)
        return attend(query, key, value)

    def _implementation(self, dtype: jnp.dtype) -> Literal["xla", "cudnn"]:
        if self.config.attention != "auto":
            return self.config.attention
        fused = platform() == "gpu" and dtype == jnp.bfloat16
        return "cudnn" if fused else "xla"


@jax.custom_vjp
def gather_sequence(x: jax.Array) -> jax.Array:
    """`x` [batch, sequence, key_value_heads, head_dim] with its sequence whole on every device. Its
    gradient, of which every device has a share, is reduced and scattered."""
    return constrain(x, "batch", None, "key_value_heads", None)


def _scatter_sequence(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, "batch", "sequence", "key_value_heads", None),)


gather_sequence.defvjp(lambda x: (gather_sequence(x), None), _scatter_sequence)


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary positions on `x` [batch, sequence, heads, head_dim]: feature pair (i, i + head_dim/2)
    of the token at place p, of `positions` [sequence], is turned by the angle p ·
    theta^(-2i/head_dim) (Su et al. 2021, eq. 34; the pairs are the halves, as in Llama)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, None] * frequency  # [sequence, head_dim/2]
    cosine, sine = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return turned.astype(x.dtype)
