"""Convolutions by the faster of two ways: XLA's own, or a product of patches with the kernel.

    y[h, w] = Σ_ij x[s·h + i, s·w + j] · K[i, j]        = patches(x)[h, w] · K as a matrix

XLA's CPU backend hands a convolution to a library, but not one inside of a loop: there it takes 10
to 14 times as long (McMahan's CNN, batches of 10 and 64). Nor one with many kernels, which is what
`vmap` over models makes of it. Products of matrices are as fast there as anywhere. So on a CPU,
where a learner says that it is about to write either, convolutions are products; everywhere else
they are XLA's, which need no memory for patches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

_as_products: ContextVar[bool] = ContextVar("as_products", default=False)


@contextmanager
def as_products() -> Iterator[None]:
    """Whatever is traced in this context computes its convolutions by products, on a CPU."""
    token = _as_products.set(True)
    try:
        yield
    finally:
        _as_products.reset(token)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **more: Any,
) -> jax.Array:
    """`x` [batch, height, width, channels] with `kernel` [high, wide, channels, features]: what
    `jax.lax.conv_general_dilated` computes of them, for `nnx.Conv`."""
    plain = feature_group_count == 1 and kernel.ndim == 4
    plain = plain and all(set(each or (1,)) == {1} for each in (lhs_dilation, rhs_dilation))
    if plain and _as_products.get() and jax.default_backend() == "cpu":
        seen = patches(x, kernel.shape[:2], padding, strides)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        return jnp.einsum("...k,kf->...f", seen, matrix, precision=precision)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        **more,
    )


def patches(
    x: jax.Array,
    kernel: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    strides: Sequence[int] = (1, 1),
) -> jax.Array:
    """[batch, height, width, channels] as [batch, height', width', kernel · kernel · channels]:
    what each output of a convolution sees."""
    sizes = x.shape[1:3]
    margins = (
        jax.lax.padtype_to_pads(sizes, kernel, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    x = jnp.pad(x, ((0, 0), *margins, (0, 0)))
    (high, wide), (down, right) = kernel, strides
    height, width = (
        (size - side) // stride + 1
        for size, side, stride in zip(x.shape[1:3], kernel, strides, strict=True)
    )
    seen = [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(high)
        for j in range(wide)
    ]
    return jnp.concatenate(seen, axis=-1)
