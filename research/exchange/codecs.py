"""What numbers become on the wire: bfloat16, int8, signs, random levels.

For a part of d float32 numbers x, 4·d bytes:

    bfloat16   2·d         x rounded to 8 bits of mantissa
    int8         d + 4     round(x / s), s = max|x| / 127
    sign       d/8 + 4     sgn(x), s = ‖x‖₁ / d: EF-signSGD (Karimireddy et al. 2019,
                           arXiv:1901.09847, Alg. 2), in two shots as 1-bit Adam's
                           (arXiv:2102.02888)
    qsgd         d + 4     QSGD (Alistarh et al. 2017, arXiv:1610.02132, §3.1): ξ·‖x‖₂/L·sgn(x),
                           ξ = ⌊L·|x|/‖x‖₂⌋ or one more, drawn so that its mean is right

`qsgd` has no error to feed back: its mean is x. The paper codes its levels by Elias' integers; here
a level and its sign are a byte, L = 127.
"""

import jax
import jax.numpy as jnp

from research.exchange.two_shot import Code, Codec, aligned, elements, over_parts

LARGEST = 127
"""Of an int8 that has an opposite."""


def bfloat16() -> Codec:
    """Half of the bytes."""
    return Codec(
        encode=lambda cut, key: (jax.lax.bitcast_convert_type(_short(cut), jnp.uint16),),
        decode=lambda code: jax.lax.bitcast_convert_type(code[0], jnp.bfloat16).astype(jnp.float32),
        contents=lambda size: [("uint16", size)],
    )


def int8() -> Codec:
    """A quarter of the bytes: 255 levels between -max|x| and max|x| of a part."""

    def encode(cut: jax.Array, key: jax.Array) -> Code:
        scale = jnp.max(jnp.abs(cut), axis=over_parts(cut)) / LARGEST
        levels = jnp.round(cut / aligned(_not_zero(scale), cut))
        return levels.astype(jnp.int8), scale

    return Codec(encode, _scaled, _byte_and_scale)


def sign() -> Codec:
    """A 32nd of the bytes: eight signs to a byte."""

    def encode(cut: jax.Array, key: jax.Array) -> Code:
        scale = jnp.sum(jnp.abs(cut), axis=over_parts(cut)) / elements(cut)
        bits = (cut >= 0).astype(jnp.uint8)  # [parts, 8, ...]
        weights = (1 << jnp.arange(8, dtype=jnp.uint8)).reshape(1, 8, *[1] * (cut.ndim - 2))
        return jnp.sum(bits * weights, axis=1, dtype=jnp.uint8), scale

    def decode(code: Code) -> jax.Array:
        packed, scale = code
        places = jnp.arange(8, dtype=jnp.uint8).reshape(1, 8, *[1] * (packed.ndim - 1))
        bits = (packed[:, None] >> places) & 1
        signs = 2.0 * bits.astype(jnp.float32) - 1.0
        return signs * aligned(scale, signs)

    return Codec(encode, decode, lambda size: [("uint8", size // 8), ("float32", 1)], lanes=8)


def qsgd() -> Codec:
    """A quarter of the bytes, without bias."""

    def encode(cut: jax.Array, key: jax.Array) -> Code:
        scale = jnp.sqrt(jnp.sum(cut**2, axis=over_parts(cut))) / LARGEST
        exact = cut / aligned(_not_zero(scale), cut)
        levels = jnp.floor(exact + jax.random.uniform(key, cut.shape))
        return levels.astype(jnp.int8), scale

    return Codec(encode, _scaled, _byte_and_scale, feedback=False)


def _scaled(code: Code) -> jax.Array:
    levels, scale = code
    return levels.astype(jnp.float32) * aligned(scale, levels)


def _byte_and_scale(size: int) -> list[tuple[str, int]]:
    return [("int8", size), ("float32", 1)]


def _not_zero(scale: jax.Array) -> jax.Array:
    return jnp.where(scale > 0, scale, 1.0)


def _short(cut: jax.Array) -> jax.Array:
    return cut.astype(jnp.bfloat16)


CODECS = {"bfloat16": bfloat16, "int8": int8, "sign": sign, "qsgd": qsgd}
