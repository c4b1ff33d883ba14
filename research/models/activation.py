"""The functions between the matrices of a transformer's MLP, or of an expert."""

import math
from typing import Literal

import jax

Name = Literal["gelu", "gelu_exact", "swiglu"]


def activate(name: Name, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """What goes down: `up` times SiLU of `gate` for swiglu, else the function of `up`."""
    if gate is not None:
        return up * jax.nn.silu(gate)
    return gelu_exact(up) if name == "gelu_exact" else jax.nn.gelu(up)


def gelu_exact(x: jax.Array) -> jax.Array:
    """x · Φ(x), by the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415). JAX's own
    form, by its complement, costs an eighth of a small model's step more on a CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
