"""The sizes and settings of a transformer: GPT-2's form, Llama's, and what lies between."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jax
from flax import nnx

from research.errors import UserError
from research.models.specification import Specification

if TYPE_CHECKING:
    from research.models.transformer import Transformer

Remat = Literal["none", "full", "dots", "dots_without_batch", "attention"]


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer. The defaults are GPT-2's form without biases."""

    layers: int = 4
    """Blocks of attention and MLP."""

    width: int = 128
    """Width of the residual stream (features)."""

    heads: int = 4
    """Query heads of every attention."""

    key_value_heads: int | None = None
    """Heads of keys and values, a divisor of heads (None: as many as heads)."""

    head_dim: int | None = None
    """Features of one head (None: width / heads)."""

    hidden: int | None = None
    """Hidden units of the MLP (None: 4 × width; for swiglu 8/3 × width, rounded up to
    a multiple of 64)."""

    experts: int = 0
    """Experts that stand in the place of every MLP, each of its form and without biases (0: one
    MLP, no mixture)."""

    experts_per_token: int = 2
    """Experts that every token goes to."""

    capacity_factor: float | None = None
    """In training an expert takes this many times its even share of a sequence's tokens, and drops
    the rest (None: it takes all, in training as in evaluation). A usual one is 1.25."""

    balance_loss: float = 0.01
    """Coefficient of the loss that keeps experts evenly busy (nats a layer when they are)."""

    router_z_loss: float = 0.001
    """Coefficient of the loss that keeps the router's logits small."""

    positions: Literal["learned", "rotary"] = "learned"
    """How a token knows its place."""

    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths (tokens / 2π)."""

    normalization: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm, before attention, before the MLP and before the head."""

    epsilon: float = 1e-5
    """Added to the variance in the normalization."""

    activation: Literal["gelu", "gelu_exact", "swiglu"] = "gelu"
    """Of the MLP: gelu is GPT-2's tanh form, gelu_exact the one by erf, swiglu has a gate."""

    tied_head: bool = True
    """The head shares the embedding table."""

    bias: bool = False
    """Linear layers and LayerNorms have biases."""

    dropout: float = 0.0
    """Share of activations dropped in training, after the embedding, attention and MLP."""

    vocabulary_size: int | None = None
    """Rows of the embedding table (tokens; None: as many as the data's vocabulary)."""

    initial_deviation: float = 0.02
    """Standard deviation of tables and matrices at the start; GPT-2's suits its widths, narrower
    models learn faster from about 1 / √width."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, norms, softmax and loss stay float32."""

    remat: Remat = "none"
    """What the backward pass computes again instead of keeping: none, full (everything), dots (all
    but matrix products), dots_without_batch (all but those of weights), attention (only its inside:
    the scores of every pair of tokens)."""

    unroll: int = 1
    """Layers per iteration of the scan over layers: more compiles longer and may run faster."""

    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """Implementation of jax.nn.dot_product_attention (auto: cudnn on a GPU in bfloat16; xla where
    the sequence is split)."""

    context_parallelism: Literal["ring", "gather"] = "ring"
    """How a sequence split over --mesh.context is attended to: ring (keys and values go round; the
    least memory, and equal work with nothing masked away; 2 × context must divide the sequence) or
    gather (every device holds all keys and values, and masks half its scores away: fewer and larger
    messages)."""

    def build(self, specification: Specification, key: jax.Array) -> "Transformer":
        """The initialized module. Raises UserError where the sizes do not fit each other."""
        from research.models.transformer import Transformer

        return Transformer(self, specification, nnx.Rngs(key))

    def check(self, specification: Specification) -> None:
        """Raises UserError where the sizes do not fit each other or the data."""
        if self.head_dim is None and self.width % self.heads:
            raise UserError(
                f"width {self.width} does not divide into {self.heads} heads: use a width such as "
                f"{self.heads * math.ceil(self.width / self.heads)}, or set --model.head-dim"
            )
        if self.heads % (self.key_value_heads or self.heads):
            raise UserError(
                f"heads {self.heads} is no multiple of key_value_heads {self.key_value_heads}: "
                f"use a divisor of {self.heads}"
            )
        if self.size_of_head % 2 and self.positions == "rotary":
            raise UserError(
                f"rotary positions turn pairs of features: head_dim {self.size_of_head} is odd"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout {self.dropout} is a share of the activations: use 0 or more, below 1"
            )
        if self.experts:
            self._check_mixture()
        if len(specification.shape) != 1:
            raise UserError(
                f"a transformer reads tokens of shape (context,), not examples of shape "
                f"{specification.shape}: use TextConfig as the data, or another model"
            )
        if self.vocabulary_size is not None and self.vocabulary_size < specification.classes:
            raise UserError(
                f"--model.vocabulary-size {self.vocabulary_size} is smaller than the data's "
                f"vocabulary of {specification.classes} tokens: use {specification.classes} or more"
            )

    def _check_mixture(self) -> None:
        if self.experts < 0:
            raise UserError(f"experts {self.experts}: use 2 or more, or 0 for no mixture")
        if not 1 <= self.experts_per_token <= self.experts:
            raise UserError(
                f"experts_per_token {self.experts_per_token} of {self.experts} experts: use 1 to "
                f"{self.experts}, or --model.experts {max(self.experts_per_token, 1)} or more"
            )
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise UserError(
                f"capacity_factor {self.capacity_factor} leaves every expert without a place: use "
                "1.25 or so, or None to drop nothing"
            )
        if self.balance_loss < 0 or self.router_z_loss < 0:
            raise UserError(
                f"balance_loss {self.balance_loss} and router_z_loss {self.router_z_loss} are "
                "coefficients of what is made small: use 0 or more"
            )

    @property
    def residual_deviation(self) -> float:
        """GPT-2's: what every layer adds twice to the residual stream starts smaller with depth."""
        return self.initial_deviation / math.sqrt(2 * self.layers)

    @property
    def size_of_head(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def hidden_units(self) -> int:
        if self.hidden is not None:
            return self.hidden
        if self.activation != "swiglu":
            return 4 * self.width
        return 64 * math.ceil(8 * self.width / 3 / 64)
