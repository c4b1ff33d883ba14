"""The tensors of Hugging Face's GPT-2 and Llama, beside the parameters of our transformer.

Each of their tensors is the concatenation of one or more of our parameters of one layer, flattened
to a matrix [in, out] or a vector [out]. GPT-2 keeps [in, out] and fuses query, key and value; Llama
keeps [out, in]. Rotary features are paired by halves in both, so no permutation is needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.models.specification import Specification
from research.models.transformer_config import TransformerConfig

Family = Literal["gpt2", "llama"]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file, and the parameters of ours that it is made of."""

    name: str
    """In the file."""

    layer: int | None
    """Index on the leading axis of our stacked parameters; None for those that are not stacked."""

    paths: tuple[Path, ...]
    """Keys of our parameters in their nested dict."""

    shapes: tuple[tuple[int, ...], ...]
    """Shape of each of our parameters, without the layer axis."""

    rows: int | None
    """Input features of a matrix; None: a vector."""

    transposed: bool
    """The file keeps [out, in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        size = sum(math.prod(shape) for shape in self.shapes)
        if self.rows is None:
            return (size,)
        shape = (self.rows, size // self.rows)
        return shape[::-1] if self.transposed else shape

    def from_ours(self, parameters: dict[str, Any]) -> np.ndarray:
        """The file's tensor, float32; a parameter that is not there (a bias) is zero."""
        parts = []
        for path, shape in zip(self.paths, self.shapes, strict=True):
            leaf = lookup(parameters, path)
            if leaf is None:
                part = np.zeros(shape, np.float32)
            else:
                part = np.asarray(leaf if self.layer is None else leaf[self.layer], np.float32)
            parts.append(part.reshape(-1) if self.rows is None else part.reshape(self.rows, -1))
        tensor = np.concatenate(parts, axis=-1)
        return np.ascontiguousarray(tensor.T if self.transposed else tensor)

    def into_ours(self, tensor: np.ndarray, parameters: dict[str, Any]) -> None:
        """Writes the file's tensor into our (already allocated) float32 parameters."""
        matrix = tensor.T if self.transposed else tensor
        sizes = [math.prod(shape) // (self.rows or 1) for shape in self.shapes]
        parts = np.split(matrix, np.cumsum(sizes)[:-1], axis=-1)
        for path, shape, part in zip(self.paths, self.shapes, parts, strict=True):
            leaf = lookup(parameters, path)
            assert leaf is not None
            leaf[... if self.layer is None else self.layer] = part.reshape(shape)


def lookup(parameters: dict[str, Any], path: Path) -> Any:
    """The leaf at `path`, or None."""
    node: Any = parameters
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


def tensors_of(
    family: Family, config: TransformerConfig, specification: Specification
) -> Iterator[Tensor]:
    """Every tensor of a model in the family's order, biases included."""
    width, hidden, heads = config.width, config.hidden_units, config.heads
    groups, head_dim = config.key_value_heads or heads, config.size_of_head
    vocabulary = config.vocabulary_size or specification.classes
    llama = family == "llama"

    def norm(name: str, path: Path, layer: int | None) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", layer, ((*path, "scale"),), ((width,),), None, False)
        if not llama:
            yield Tensor(f"{name}.bias", layer, ((*path, "bias"),), ((width,),), None, False)

    def linear(
        name: str, layer: int, fan_in: tuple[int, ...], outputs: dict[str, tuple[int, ...]]
    ) -> Iterator[Tensor]:
        """`outputs`: our modules below a block, in the order of the fused columns, with their
        output shapes."""
        paths = [("blocks", *module.split(".")) for module in outputs]
        yield Tensor(
            f"{name}.weight",
            layer,
            tuple((*path, "kernel") for path in paths),
            tuple(fan_in + shape for shape in outputs.values()),
            math.prod(fan_in),
            transposed=llama,
        )
        biases = tuple((*path, "bias") for path in paths)
        yield Tensor(f"{name}.bias", layer, biases, tuple(outputs.values()), None, False)

    query: tuple[int, ...] = (heads, head_dim)
    shared: tuple[int, ...] = (groups, head_dim)  # by the queries of a group
    if llama:
        yield Tensor(
            "model.embed_tokens.weight",
            None, (("embedding",),), ((vocabulary, width),), vocabulary, False,
        )  # fmt: skip
        for layer in range(config.layers):
            block = f"model.layers.{layer}"
            attention, mlp = f"{block}.self_attn", f"{block}.mlp"
            yield from norm(f"{block}.input_layernorm", ("blocks", "attention_norm"), layer)
            yield from linear(f"{attention}.q_proj", layer, (width,), {"attention.query": query})
            yield from linear(f"{attention}.k_proj", layer, (width,), {"attention.key": shared})
            yield from linear(f"{attention}.v_proj", layer, (width,), {"attention.value": shared})
            yield from linear(f"{attention}.o_proj", layer, query, {"attention.output": (width,)})
            yield from norm(f"{block}.post_attention_layernorm", ("blocks", "mlp_norm"), layer)
            yield from linear(f"{mlp}.gate_proj", layer, (width,), {"mlp.gate": (hidden,)})
            yield from linear(f"{mlp}.up_proj", layer, (width,), {"mlp.up": (hidden,)})
            yield from linear(f"{mlp}.down_proj", layer, (hidden,), {"mlp.down": (width,)})
        yield from norm("model.norm", ("final_norm",), None)
    else:
        (context,) = specification.shape
        for name, path, rows in (("wte", "embedding", vocabulary), ("wpe", "position", context)):
            yield Tensor(
                f"transformer.{name}.weight", None, ((path,),), ((rows, width),), rows, False
            )
        fused = {"attention.query": query, "attention.key": query, "attention.value": query}
        for layer in range(config.layers):
            block = f"transformer.h.{layer}"
            yield from norm(f"{block}.ln_1", ("blocks", "attention_norm"), layer)
            yield from linear(f"{block}.attn.c_attn", layer, (width,), fused)
            yield from linear(f"{block}.attn.c_proj", layer, query, {"attention.output": (width,)})
            yield from norm(f"{block}.ln_2", ("blocks", "mlp_norm"), layer)
            yield from linear(f"{block}.mlp.c_fc", layer, (width,), {"mlp.up": (hidden,)})
            yield from linear(f"{block}.mlp.c_proj", layer, (hidden,), {"mlp.down": (width,)})
        yield from norm("transformer.ln_f", ("final_norm",), None)
    if not config.tied_head:
        yield Tensor("lm_head.weight", None, (("head",),), ((width, vocabulary),), width, True)


def allocate(tensors: list[Tensor], layers: int, bias: bool) -> dict[str, Any]:
    """Zeros for every parameter that `tensors` name, stacked over `layers`; biases if `bias`."""
    parameters: dict[str, Any] = {}
    for tensor in tensors:
        if tensor.layer not in (None, 0):
            continue
        for path, shape in zip(tensor.paths, tensor.shapes, strict=True):
            if path[-1] == "bias" and not bias:
                continue
            node = parameters
            for key in path[:-1]:
                node = node.setdefault(key, {})
            stacked = shape if tensor.layer is None else (layers, *shape)
            node[path[-1]] = np.zeros(stacked, np.float32)
    return parameters
