"""`config.json` of Hugging Face's GPT-2 and Llama, in both directions."""

from pathlib import Path
from typing import Any, Literal

from research.errors import UserError
from research.models.huggingface_tensors import Family
from research.models.specification import Specification
from research.models.transformer_config import TransformerConfig

# Their names for our activations; the first is written, all are read.
GELUS: dict[str, Literal["gelu", "gelu_exact"]] = {
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "gelu_pytorch_tanh": "gelu",
}


def to_huggingface(
    config: TransformerConfig, specification: Specification
) -> tuple[Family, dict[str, Any]]:
    """The family that expresses `config`, and its `config.json`.

    Dropout is not part of Llama's and is left out there. Raises UserError, naming the field, where
    neither family has what the config asks for.
    """
    if config.experts:
        raise UserError(
            f"a mixture of {config.experts} experts cannot be exported: the forms known here are "
            "Hugging Face's gpt2 and llama, which have none (--model.experts 0)"
        )
    (context,) = specification.shape
    shared = {
        "vocab_size": config.vocabulary_size or specification.classes,
        "tie_word_embeddings": config.tied_head,
        # The tokenizer knows them; the families' defaults are those of their own tokenizers.
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    if config.positions == "rotary":
        _require(config, "llama", normalization=("rms",), activation=("swiglu",))
        return "llama", {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": config.width,
            "intermediate_size": config.hidden_units,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads or config.heads,
            "head_dim": config.size_of_head,
            "max_position_embeddings": context,
            "hidden_act": "silu",
            "rms_norm_eps": config.epsilon,
            # Version 4 of transformers reads the first, version 5 the second.
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "attention_bias": config.bias,
            "mlp_bias": config.bias,
            **shared,
        }
    _require(
        config,
        "gpt2",
        normalization=("layer",),
        activation=("gelu", "gelu_exact"),
        key_value_heads=(None, config.heads),
        head_dim=(None, config.width // config.heads),
    )
    return "gpt2", {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_inner": config.hidden_units,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": context,
        "activation_function": next(
            name for name, ours in GELUS.items() if ours == config.activation
        ),
        "layer_norm_epsilon": config.epsilon,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        # Ours, unknown to transformers: false says that the zero biases were never there.
        "bias": config.bias,
        **shared,
    }


def _require(config: TransformerConfig, family: Family, **allowed: tuple[Any, ...]) -> None:
    for field, values in allowed.items():
        if getattr(config, field) not in values:
            raise UserError(
                f"{field} {getattr(config, field)} with {config.positions} positions cannot be "
                f"exported: Hugging Face's {family} has {field} {values[-1]}"
            )
    if family == "gpt2" and config.width % config.heads:
        raise UserError(
            f"width {config.width} over {config.heads} heads cannot be exported: Hugging Face's "
            f"gpt2 has a head_dim of width / heads"
        )


def from_huggingface(
    description: dict[str, Any], path: Path
) -> tuple[Family, TransformerConfig, Specification]:
    """Our config of the model that `config.json` describes; `path` names it in errors.

    Raises UserError for other families, missing sizes, and settings that ours does not have.
    """
    family = description.get("model_type")
    if family == "gpt2":
        return "gpt2", *_from_gpt2(_Settings(description, path))
    if family == "llama":
        return "llama", *_from_llama(_Settings(description, path))
    raise UserError(f"{path} has model_type {family}: only gpt2 and llama are read")


class _Settings:
    """Values of a `config.json`, typed, with errors that name the key."""

    def __init__(self, values: dict[str, Any], path: Path):
        self.values = values
        self.path = path

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self.path} has {key} {value}: it must be a whole number above 0")
        return value

    def real(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{self.path} has {key} {value}: it must be a number")
        return float(value)

    def only(self, key: str, expected: Any) -> None:
        """Refuses any value but `expected`, which is also the default."""
        value = self.values.get(key, expected)
        if value != expected:
            raise UserError(
                f"{self.path} has {key} {value}: our transformer has {key} {expected} only"
            )


def _from_gpt2(settings: _Settings) -> tuple[TransformerConfig, Specification]:
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.only("add_cross_attention", False)
    activation = settings.values.get("activation_function", "gelu_new")
    if activation not in GELUS:
        raise UserError(
            f"{settings.path} has activation_function {activation}: use one of {', '.join(GELUS)}"
        )
    width = settings.whole("n_embd")
    hidden = settings.whole("n_inner", 4 * width)
    vocabulary = settings.whole("vocab_size")
    config = TransformerConfig(
        layers=settings.whole("n_layer"),
        width=width,
        heads=settings.whole("n_head"),
        hidden=None if hidden == 4 * width else hidden,
        epsilon=settings.real("layer_norm_epsilon", 1e-5),
        activation=GELUS[activation],
        tied_head=bool(settings.values.get("tie_word_embeddings", True)),
        bias=bool(settings.values.get("bias", True)),
        dropout=settings.real("resid_pdrop", 0.1),
    )
    return config, Specification((settings.whole("n_positions"),), vocabulary)


def _from_llama(settings: _Settings) -> tuple[TransformerConfig, Specification]:
    settings.only("hidden_act", "silu")
    width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    groups = settings.whole("num_key_value_heads", heads)
    head_dim = settings.whole("head_dim", max(1, width // heads))
    vocabulary = settings.whole("vocab_size")
    biases = (settings.values.get("attention_bias"), settings.values.get("mlp_bias"))
    config = TransformerConfig(
        layers=settings.whole("num_hidden_layers"),
        width=width,
        heads=heads,
        key_value_heads=None if groups == heads else groups,
        head_dim=None if head_dim * heads == width else head_dim,
        hidden=settings.whole("intermediate_size"),
        positions="rotary",
        rope_theta=_rope_theta(settings),
        normalization="rms",
        epsilon=settings.real("rms_norm_eps", 1e-6),
        activation="swiglu",
        tied_head=bool(settings.values.get("tie_word_embeddings", False)),
        bias=any(biases),
    )
    context = settings.whole("max_position_embeddings", 2048)
    return config, Specification((context,), vocabulary)


def _rope_theta(settings: _Settings) -> float:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = settings.values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise UserError(f"{settings.path} has {key} {rope}: it must be an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"{settings.path} has {key} {rope}: our rotary positions are of rope_type default, "
                f"over all of head_dim"
            )
        if "rope_theta" in rope:
            return _Settings(rope, settings.path).real("rope_theta", 10_000.0)
    return settings.real("rope_theta", 10_000.0)
