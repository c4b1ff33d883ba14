"""A stacked LSTM over characters, of which each is told apart by its neighbors before it.

The model of Shakespeare by role in McMahan et al. 2017, arXiv:1602.05629, §3, and in Reddi et al.
2021, arXiv:2003.00295: a character becomes 8 learned numbers, two layers of 256 units read them,
and a softmax says what comes next; 820,522 parameters for 90 characters. A layer is that of
Hochreiter and Schmidhuber 1997 with the forget gate of Gers, Schmidhuber and Cummins 2000:

    i, f, o = σ(x_t W + h_{t-1} U + b)    g = tanh(x_t W + h_{t-1} U + b)    each its own W, U, b
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)                 c_0 = h_0 = 0

Over `tensor` lie the units with all of their gates, so that only h_{t-1} is sent, once a step.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.errors import UserError
from research.models.model import Model
from research.models.specification import Specification
from research.parallel.gather import gathered
from research.parallel.layout import constrain
from research.parallel.lookup import take_rows

GATES = 4  # i, f, g, o
Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class LSTMConfig:
    """A stacked LSTM over tokens."""

    layers: int = 2
    """Layers that read each other."""

    width: int = 256
    """Units of a layer."""

    embedding: int = 8
    """Numbers that a token becomes."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and logits are always float32."""

    def build(self, specification: Specification, key: jax.Array) -> "LSTM":
        """Returns the model with parameters drawn from `key`.

        Raises `UserError` for a size below 1, and where examples are not sequences.
        """
        for name in ("layers", "width", "embedding"):
            if getattr(self, name) < 1:
                raise UserError(f"the lstm's {name} is {getattr(self, name)}: use 1 or more")
        if len(specification.shape) != 1:
            raise UserError(
                f"the lstm reads sequences of tokens, and the data's examples have shape "
                f"{specification.shape}: use text, or the cnn for images"
            )
        return LSTM(self, specification, nnx.Rngs(key))


class Layer(nnx.Module):
    """One layer, from [batch, sequence, features] to [batch, sequence, width]."""

    def __init__(self, fan_in: int, width: int, dtype: str, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(dtype)
        # Glorot and Bengio 2010 for W, Saxe et al. 2014 for U; a forget gate that is open at first
        # (Jozefowicz et al. 2015).
        glorot, orthogonal = nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal()
        shape = (GATES, width)
        w = glorot(rngs.params(), (fan_in, GATES * width)).reshape(fan_in, *shape)
        u = orthogonal(rngs.params(), (width, GATES * width)).reshape(width, *shape)
        self.inputs = nnx.Param(w, axes=("embed", None, "mlp"))
        self.recurrent = nnx.Param(u, axes=("embed", None, "mlp"))
        self.bias = nnx.Param(jnp.zeros(shape).at[1].set(1.0), axes=(None, "mlp"))

    def __call__(self, x: jax.Array) -> jax.Array:
        w, u = (self._whole(p) for p in (self.inputs, self.recurrent))
        bias = self.bias[...].astype(self.dtype)
        read = jnp.einsum("bsf,fgw->sbgw", x, w) + bias  # [sequence, batch, gates, width]
        read = constrain(read, None, "batch", None, "mlp")
        zeros = constrain(jnp.zeros((x.shape[0], u.shape[-1]), x.dtype), "batch", "mlp")

        def step(state: tuple[jax.Array, jax.Array], read: jax.Array) -> tuple[tuple, jax.Array]:
            h, c = state
            z = read + jnp.einsum("bv,vgw->bgw", constrain(h, "batch", None), u)
            i, f, g, o = (z[:, gate] for gate in range(GATES))
            c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g)
            h = constrain(nnx.sigmoid(o) * jnp.tanh(c), "batch", "mlp")
            return (h, c), h

        _, h = jax.lax.scan(step, (zeros, zeros), read)
        return h.swapaxes(0, 1)  # [batch, sequence, width]

    def _whole(self, parameter: nnx.Param) -> jax.Array:
        # Before the loop over the sequence: else fsdp would send the weights at every step of it.
        return gathered(parameter[...].astype(self.dtype), ("embed", None, "mlp"))


class LSTM(Model):
    """Logits of the next token from the tokens before it; see the file's head."""

    def __init__(self, config: LSTMConfig, specification: Specification, rngs: nnx.Rngs):
        self.config = config
        classes = specification.classes
        table = jax.random.uniform(rngs.params(), (classes, config.embedding), minval=-1, maxval=1)
        self.embedding = nnx.Param(0.05 * table, axes=("vocab", "embed"))
        features = [config.embedding, *[config.width] * (config.layers - 1)]
        self.layers = nnx.List([Layer(n, config.width, config.dtype, rngs) for n in features])
        self.output = nnx.Linear(
            config.width,
            classes,
            kernel_init=nnx.with_metadata(nnx.initializers.glorot_uniform(), axes=("mlp", None)),
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Maps tokens `[batch, sequence]` to float32 logits `[batch, sequence, classes]`.

        `train` and `keys` change nothing: there is no dropout.
        """
        table = self.embedding[...].astype(jnp.dtype(self.config.dtype))
        x = take_rows(gathered(table, ("vocab", "embed")), inputs)
        x = constrain(x, "batch", None, None)
        for layer in self.layers:
            x = layer(x)
        x = constrain(x, "batch", None, "mlp")
        logits = self.output(x).astype(jnp.float32)
        return constrain(logits, "batch", None, None)
