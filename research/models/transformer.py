"""A decoder-only transformer: GPT-2 or Llama by configuration.

Vaswani et al. 2017, *Attention is all you need*, arXiv:1706.03762; with what came after, each a
setting: pre-normalization and learned positions (GPT-2, Radford et al. 2019); rotary positions (Su
et al. 2021, arXiv:2104.09864); RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467); SwiGLU
(Shazeer 2020, arXiv:2002.05202); grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245);
Llama (Touvron et al. 2023, arXiv:2302.13971).

    x = embed(tokens) (+ position)
    x = x + attention(norm(x));  x = x + mlp(norm(x))          for every layer
    logits = head(norm(x))

Layers are stacked: every parameter of a block has a leading `layers` dimension, and one `lax.scan`
runs them, so that compile time does not grow with depth.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from research.errors import UserError
from research.models.model import Extras, Model, drop
from research.models.products import dot_general
from research.models.specification import Specification
from research.models.transformer_config import TransformerConfig
from research.parallel.layout import constrain

REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    # what the forward pass keeps for the backward pass; the rest is computed again
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
            kernel_init=nnx.initializers.normal(_residual_scale(config)),
            kernel_metadata={"axes": ("heads", "head_dim", "embed")},
            bias_metadata={"axes": (None,)},
            rngs=rngs,
        )
        self.rope_theta = config.rope_theta if config.positions == "rotary" else None
        self.implementation = config.attention
        self.compute_again = config.remat == "attention"

    def __call__(self, x: jax.Array) -> jax.Array:
        # [batch, sequence, width] -> [batch, sequence, heads, head_dim]
        query = constrain(self.query(x), "batch", "sequence", "heads", None)
        key = constrain(self.key(x), "batch", "sequence", "key_value_heads", None)
        value = constrain(self.value(x), "batch", "sequence", "key_value_heads", None)
        if self.rope_theta is not None:
            query, key = rotate(query, self.rope_theta), rotate(key, self.rope_theta)
        attend: Callable[..., jax.Array] = partial(
            jax.nn.dot_product_attention,
            is_causal=True,
            implementation=self._implementation(query.dtype),
        )
        if self.compute_again:
            attend = jax.checkpoint(attend)
        mixed = attend(query, key, value)
        mixed = constrain(mixed, "batch", "sequence", "heads", None)
        return self.output(mixed)

    def _implementation(self, dtype: jnp.dtype) -> Literal["xla", "cudnn"]:
        if self.implementation != "auto":
            return self.implementation
        fused = jax.default_backend() == "gpu" and dtype == jnp.bfloat16
        return "cudnn" if fused else "xla"


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotary positions on `x` [batch, sequence, heads, head_dim]: feature pair (i, i + head_dim/2)
    of the token at place p is turned by the angle p · theta^(-2i/head_dim) (Su et al. 2021, eq.
    34; the pairs are the halves, as in Llama)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequency  # [sequence, head_dim/2]
    cosine, sine = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return turned.astype(x.dtype)


class MLP(nnx.Module):
    """The block's position-wise network: up, activation (times a gate for swiglu), down."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        def up() -> nnx.Linear:
            return nnx.Linear(
                config.width,
                config.hidden_units,
                use_bias=config.bias,
                dtype=jnp.dtype(config.dtype),
                dot_general=dot_general,
                kernel_init=nnx.initializers.normal(config.initial_deviation),
                kernel_metadata={"axes": ("embed", "mlp")},
                bias_metadata={"axes": ("mlp",)},
                rngs=rngs,
            )

        self.up = up()
        self.gated = config.activation == "swiglu"
        if self.gated:
            self.gate = up()
        self.down = nnx.Linear(
            config.hidden_units,
            config.width,
            use_bias=config.bias,
            dtype=jnp.dtype(config.dtype),
            dot_general=dot_general,
            kernel_init=nnx.initializers.normal(_residual_scale(config)),
            kernel_metadata={"axes": ("mlp", "embed")},
            bias_metadata={"axes": (None,)},
            rngs=rngs,
        )
        self.exact = config.activation == "gelu_exact"

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = constrain(self.up(x), "batch", "sequence", "mlp")
        if self.gated:
            hidden = hidden * jax.nn.silu(constrain(self.gate(x), "batch", "sequence", "mlp"))
        else:
            hidden = gelu_exact(hidden) if self.exact else jax.nn.gelu(hidden)
        return self.down(hidden)


class Block(nnx.Module):
    """One layer: attention and MLP, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.mlp = MLP(config, rngs)
        self.dropout = config.dropout

    def __call__(
        self, x: jax.Array, keys: jax.Array | None, index: jax.Array
    ) -> tuple[jax.Array, Extras]:
        """`x` [batch, sequence, width] after layer number `index`, and what the layer adds."""
        attended = self.attention(self.attention_norm(x))
        x = x + drop(attended, self.dropout, keys, 2 * index + 1)
        made = self.mlp(self.mlp_norm(x))
        x = x + drop(made, self.dropout, keys, 2 * index + 2)
        return constrain(x, "batch", "sequence", None), Extras({}, {})


class Transformer(Model):
    """Logits of the next token from the tokens before it, in three parts: `embed`, `run`, `read`.

    `run` is all that a pipeline cuts into stages; the other two are light.
    """

    def __init__(self, config: TransformerConfig, specification: Specification, rngs: nnx.Rngs):
        config.check(specification)
        self.config = config
        vocabulary = config.vocabulary_size or specification.classes

        def table(rows: int, width: int, axes: tuple[str | None, ...]) -> nnx.Param:
            deviation = config.initial_deviation
            values = deviation * jax.random.normal(rngs.params(), (rows, width))
            return nnx.Param(values, axes=axes)

        self.embedding = table(vocabulary, config.width, ("vocab", "embed"))
        if config.positions == "learned":
            (context,) = specification.shape
            self.position = table(context, config.width, (None, "embed"))
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = jax.vmap(lambda key: Block(config, nnx.Rngs(key)))(keys)  # [layers, ...] each
        self.final_norm = _norm(config, rngs)
        if not config.tied_head:
            self.head = table(config.width, vocabulary, ("embed", "vocab"))

    def __call__(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits [batch, sequence, vocabulary] (float32) for tokens [batch, sequence].

        Raises UserError for a sequence longer than the table of learned positions.
        """
        return self.forward(inputs, train=train, keys=keys)[0]

    def forward(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        """As `__call__`, with what the layers add."""
        keys = keys if train else None
        x, extras = self.run(self.embed(inputs, keys), keys)
        return self.read(x), extras

    def embed(self, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """The residual stream [batch, sequence, width] of `tokens` [batch, sequence]."""
        x = jnp.take(self._table(), tokens, axis=0)
        if self.config.positions == "learned":
            longest = self.position.shape[0]
            if tokens.shape[1] > longest:
                raise UserError(
                    f"{tokens.shape[1]} tokens are more than the {longest} learned positions: "
                    f"use at most {longest}, or rotary positions"
                )
            x = x + constrain(self.position[: tokens.shape[1]], None, None).astype(x.dtype)
        x = constrain(x, "batch", "sequence", None)
        return drop(x, self.config.dropout, keys, 0)

    def run(
        self, x: jax.Array, keys: jax.Array | None = None, first: int | jax.Array = 0
    ) -> tuple[jax.Array, Extras]:
        """`x` [batch, sequence, width] through the blocks that this module holds, of which the
        first is layer number `first` of the whole; and what they add, summed over them."""

        def layer(x: jax.Array, block_and_index: tuple[Block, jax.Array]) -> tuple[jax.Array, Any]:
            block, index = block_and_index
            return block(x, keys, index)

        config = self.config
        if config.remat in REMAT_POLICIES:
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
        layers = jax.tree.leaves(self.blocks)[0].shape[0]
        indexes = first + jnp.arange(layers)
        unroll = min(config.unroll, layers)
        x, extras = jax.lax.scan(layer, x, (self.blocks, indexes), unroll=unroll)
        return x, jax.tree.map(lambda each: jnp.sum(each, axis=0), extras)

    def read(self, x: jax.Array) -> jax.Array:
        """Logits [batch, sequence, vocabulary] (float32) of the stream after the last layer."""
        x = self.final_norm(x)
        head = (
            self._table().T if self.config.tied_head else constrain(self.head[...], None, "vocab")
        )
        logits = jnp.matmul(x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        return constrain(logits, "batch", "sequence", "vocab")

    def _table(self) -> jax.Array:
        # Whole rows are looked up: splitting both the rows' features and the batch over `fsdp`
        # would make XLA replicate the activations.
        return constrain(self.embedding[...], "vocab", None).astype(jnp.dtype(self.config.dtype))


def gelu_exact(x: jax.Array) -> jax.Array:
    """x · Φ(x), by the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415). JAX's own
    form, by its complement, costs an eighth of a small model's step more on a CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    # Whole in its own dimension, and named so: stacked over layers, it is split with them.
    named = {"axes": (None,)}
    settings: dict[str, Any] = {
        "epsilon": config.epsilon,
        "dtype": jnp.dtype(config.dtype),
        "scale_metadata": named,
        "rngs": rngs,
    }
    if config.normalization == "rms":
        return nnx.RMSNorm(config.width, **settings)
    return nnx.LayerNorm(config.width, use_bias=config.bias, bias_metadata=named, **settings)


def _residual_scale(config: TransformerConfig) -> float:
    """GPT-2's: what every layer adds twice to the residual stream starts smaller with depth."""
    return config.initial_deviation / math.sqrt(2 * config.layers)
