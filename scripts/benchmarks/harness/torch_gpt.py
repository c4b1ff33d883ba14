"""The transformer of `research.models.transformer` in PyTorch, as a PyTorch user would write it.

GPT-2's form without biases, as in nanoGPT (Karpathy 2022): one projection for query, key and
value, `scaled_dot_product_attention`, a head tied to the embedding table. Weights come from our
parameters, so that both sides can be shown to compute the same losses.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """Of a model; what `TransformerConfig` and the data say."""

    layers: int
    width: int
    heads: int
    context: int  # tokens
    vocabulary: int  # rows of the embedding table
    exact_gelu: bool
    epsilon: float = 1e-5


class Norm(nn.Module):
    """LayerNorm with a scale and no bias."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(sizes.width))
        self.epsilon = sizes.epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, None, self.epsilon)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.attention_norm = Norm(sizes)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = Norm(sizes)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.gelu = nn.GELU(approximate="none" if sizes.exact_gelu else "tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, sequence, width = x.shape
        projected = self.query_key_value(self.attention_norm(x)).split(width, dim=2)
        query, key, value = (  # [batch, heads, sequence, head_dim] each
            part.view(batch, sequence, self.heads, -1).transpose(1, 2) for part in projected
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, sequence, width))
        return x + self.down(self.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """The loss of next-token prediction."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.final_norm = Norm(sizes)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy (nats a token) for `inputs` and `targets` [batch, sequence]."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.embedding(inputs) + self.position(places)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.final_norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    @torch.no_grad()
    def load(self, parameters: dict[str, np.ndarray]) -> None:
        """Copies our parameters, by their dotted path (`blocks.mlp.up.kernel`)."""

        def copy(to: torch.Tensor, array: np.ndarray) -> None:
            to.copy_(torch.from_numpy(np.ascontiguousarray(array)))

        width = self.position.weight.shape[1]
        copy(self.embedding.weight, parameters["embedding"])
        copy(self.position.weight, parameters["position"])
        copy(self.final_norm.weight, parameters["final_norm.scale"])
        for layer, block in enumerate(self.blocks):
            mine = {
                name.removeprefix("blocks."): array[layer]
                for name, array in parameters.items()
                if name.startswith("blocks.")
            }
            # ours: [width, heads, head_dim] each; PyTorch's Linear: [out, in]
            projections = [
                mine[f"attention.{name}.kernel"].reshape(width, width).T
                for name in ("query", "key", "value")
            ]
            copy(block.query_key_value.weight, np.concatenate(projections))
            copy(block.output.weight, mine["attention.output.kernel"].reshape(width, width).T)
            copy(block.up.weight, mine["mlp.up.kernel"].T)
            copy(block.down.weight, mine["mlp.down.kernel"].T)
            copy(block.attention_norm.weight, mine["attention_norm.scale"])
            copy(block.mlp_norm.weight, mine["mlp_norm.scale"])


def adamw(model: GPT, settings: dict[str, Any], fused: bool) -> torch.optim.AdamW:
    """AdamW with decay of matrices only; `settings` has beta1, beta2 and weight_decay."""
    parameters = list(model.parameters())
    groups = [
        {
            "params": [p for p in parameters if p.dim() >= 2],
            "weight_decay": settings["weight_decay"],
        },
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings["beta1"], settings["beta2"])
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=fused)
