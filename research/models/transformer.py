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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from research.errors import UserError
from research.models.activation import activate
from research.models.attention import (
    Attention,
    arrange,
    arrange_back,
    check_context,
    running_order,
)
from research.models.mixture import Mixture
from research.models.model import Extras, Model, drop, drops
from research.models.products import dot_general
from research.models.specification import Specification
from research.models.transformer_config import TransformerConfig
from research.parallel.gather import gathered, gathered_module, keep_all_but_gathered
from research.parallel.layout import constrain, is_split, parts_of
from research.parallel.lookup import take_rows

REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    # what the forward pass keeps for the backward pass; the rest is computed again
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
            kernel_init=nnx.initializers.normal(config.residual_deviation),
            kernel_metadata={"axes": ("mlp", "embed")},
            bias_metadata={"axes": (None,)},
            rngs=rngs,
        )
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = constrain(self.up(x), "batch", "sequence", "mlp")
        gate = constrain(self.gate(x), "batch", "sequence", "mlp") if self.gated else None
        return self.down(activate(self.activation, hidden, gate))


class Block(nnx.Module):
    """One layer: attention and MLP (or a mixture of them), each added to the residual stream."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.mlp = Mixture(config, rngs) if config.experts else MLP(config, rngs)
        self.dropout = config.dropout

    def __call__(
        self, x: jax.Array, keys: jax.Array | None, index: jax.Array, training: bool
    ) -> tuple[jax.Array, Extras]:
        """`x` [batch, sequence, width] after layer number `index`, and what the layer adds."""
        attended = self.attention(self.attention_norm(x))
        x = x + drop(attended, self.dropout, keys, 2 * index + 1)
        normed, extras = self.mlp_norm(x), Extras({}, {})
        if isinstance(self.mlp, Mixture):
            made, extras = self.mlp(normed, training=training)
        else:
            made = self.mlp(normed)
        x = x + drop(made, self.dropout, keys, 2 * index + 2)
        return constrain(x, "batch", "sequence", None), extras


class Transformer(Model):
    """Logits of the next token from the tokens before it, in three parts: `embed`, `run`, `read`.

    `run` is all that a pipeline cuts into stages; the other two are light. On a mesh that splits
    the sequence all three run in the order of `arrange`.
    """

    splits = ("batch", "sequence")

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
        logits = self.forward(inputs, train=train, keys=keys)[0]
        return arrange_back(self.config, logits)

    def forward(
        self, inputs: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        """As `__call__`, but the logits in the order of `arrange`; and what the layers add."""
        keys = keys if train else None
        x, extras = self.run(self.embed(inputs, keys), keys)
        return self.read(x), extras

    def arrange(self, targets: jax.Array) -> jax.Array:
        """Zig-zag where attention is a ring; what comes in whole moves nowhere by it."""
        return arrange(self.config, targets)

    def check_mesh(self, specification: Specification) -> None:
        """Raises UserError where the sequence does not divide over `context`, or may not."""
        check_context(self.config, specification.shape[0])
        if self.config.experts and self.config.capacity_factor is not None and is_split("sequence"):
            raise UserError(
                f"capacity_factor {self.config.capacity_factor} counts the places of a whole "
                f"sequence, and --mesh.context {parts_of('sequence')} splits it: use "
                "--model.capacity-factor None, which drops nothing, or --mesh.context 1"
            )

    def embed(self, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """The residual stream [batch, sequence, width] of `tokens` [batch, sequence]."""
        x = take_rows(self._table(), self.arrange(tokens))
        if self.config.positions == "learned":
            longest = self.position.shape[0]
            if tokens.shape[1] > longest:
                raise UserError(
                    f"{tokens.shape[1]} tokens are more than the {longest} learned positions: "
                    f"use at most {longest}, or rotary positions"
                )
            table = gathered(self.position[: tokens.shape[1]].astype(x.dtype), (None, "embed"))
            x = x + self.arrange(table[None])
        x = constrain(x, "batch", "sequence", None)
        return drop(x, self.config.dropout, self._token_keys(keys, x), 0)

    def run(
        self, x: jax.Array, keys: jax.Array | None = None, first: int | jax.Array = 0
    ) -> tuple[jax.Array, Extras]:
        """`x` [batch, sequence, width] through the blocks that this module holds, of which the
        first is layer number `first` of the whole; and what they add, summed over them."""
        training, keys = keys is not None, self._token_keys(keys, x)
        config = self.config

        def layer(x: jax.Array, block_and_index: tuple[Block, jax.Array]) -> tuple[jax.Array, Any]:
            block, index = block_and_index
            block, x = gathered_module(block, x, config.dtype)
            return block(x, keys, index, training)

        if config.remat in REMAT_POLICIES:
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
        else:
            layer = keep_all_but_gathered(layer)
        layers = jax.tree.leaves(self.blocks)[0].shape[0]
        indexes = first + jnp.arange(layers)
        unroll = min(config.unroll, layers)
        x, extras = jax.lax.scan(layer, x, (self.blocks, indexes), unroll=unroll)
        return x, jax.tree.map(lambda each: jnp.sum(each, axis=0), extras)

    def read(self, x: jax.Array) -> jax.Array:
        """Logits [batch, sequence, vocabulary] (float32) of the stream after the last layer."""
        x = self.final_norm(x)
        if self.config.tied_head:
            head = self._table().T
        else:
            head = gathered(self.head[...].astype(x.dtype), ("embed", "vocab"))
        logits = jnp.matmul(x, head, preferred_element_type=jnp.float32)
        return constrain(logits, "batch", "sequence", "vocab")

    def _token_keys(self, keys: jax.Array | None, x: jax.Array) -> jax.Array | None:
        """Keys [batch, sequence] for `x` [batch, sequence, ...] of its examples' `keys` [batch]: a
        token draws the same dropout wherever it runs."""
        if keys is None or not drops(self.config.dropout):
            return None
        order = running_order(self.config, x.shape[1])
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return constrain(fold(keys, order), "batch", "sequence")

    def _table(self) -> jax.Array:
        # Whole rows are looked up: splitting both the rows' features and the batch over `fsdp`
        # would make XLA replicate the activations.
        table = self.embedding[...].astype(jnp.dtype(self.config.dtype))
        return gathered(table, ("vocab", "embed"))


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
