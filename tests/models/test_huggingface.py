"""Transformers out to Hugging Face folders and in from them."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.models.huggingface import export, load
from research.models.specification import Specification
from research.models.transformer import TransformerConfig

TEXT = Specification(shape=(16,), classes=61)
GPT2 = TransformerConfig(layers=3, width=24, heads=4, bias=True)
LLAMA = TransformerConfig(
    layers=3,
    width=24,
    heads=4,
    key_value_heads=2,
    hidden=40,
    positions="rotary",
    normalization="rms",
    activation="swiglu",
    tied_head=False,
)

CONFIGS = {
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tied_head=False, hidden=50),
    "gpt2-exact-gelu": replace(GPT2, activation="gelu_exact", epsilon=1e-3),
    "gpt2-without-biases": replace(GPT2, bias=False),
    "llama": LLAMA,
    "llama-tied": replace(LLAMA, tied_head=True, key_value_heads=None),
    "llama-theta": replace(LLAMA, rope_theta=500.0, epsilon=1e-3, key_value_heads=1),
    "llama-head-dim": replace(LLAMA, head_dim=10),
    "llama-biases": replace(LLAMA, bias=True),
}


def parameters_of(config: TransformerConfig) -> dict[str, Any]:
    """Parameters all of which matter: far from zero, norms and biases too."""
    state = nnx.state(config.build(TEXT, jax.random.key(0)), nnx.Param)
    leaves, structure = jax.tree.flatten(nnx.to_pure_dict(state))
    random = np.random.default_rng(0)
    return jax.tree.unflatten(
        structure, [x + 0.2 * random.normal(size=x.shape).astype(np.float32) for x in leaves]
    )


def logits(config: TransformerConfig, specification: Specification, parameters, tokens):
    graph, _ = nnx.split(config.build(specification, jax.random.key(1)))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, parameters))(jnp.asarray(tokens))


def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 61, (2, 16)).astype(np.int32)


@pytest.fixture
def torch() -> ModuleType:
    pytest.importorskip("transformers", reason="reads with transformers, which is not installed")
    return pytest.importorskip("torch", reason="reads with PyTorch, which is not installed")


def their_logits(torch: ModuleType, model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens()).long()).logits.float().numpy()


def assert_logits_equal(ours, theirs: np.ndarray) -> None:
    # Logits of size 1 to 10, from 3 layers of float32 sums of at most 60 products in another order.
    assert np.abs(theirs).max() > 0.05, "the test compares nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_export_gives_transformers_the_same_logits(torch, tmp_path, name):
    from transformers import AutoModelForCausalLM

    config = CONFIGS[name]
    parameters = parameters_of(config)
    export(config, TEXT, parameters, tmp_path / "model")
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_logits_equal(logits(config, TEXT, parameters, tokens()), their_logits(torch, model))


def build_theirs(torch: ModuleType, name: str):
    import transformers

    torch.manual_seed(0)
    if name.startswith("gpt2"):
        config = transformers.GPT2Config(
            vocab_size=61, n_positions=16, n_embd=24, n_layer=3, n_head=4, bos_token_id=0,
            eos_token_id=0, tie_word_embeddings=name == "gpt2",
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=61, max_position_embeddings=16, hidden_size=24, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2 if "grouped" in name else 4,
            intermediate_size=40, tie_word_embeddings="tied" in name,
            attention_bias="bias" in name,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():  # biases and scales must matter too
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2-untied", "llama", "llama-grouped", "llama-grouped-tied", "llama-bias"]
)
def test_load_gives_the_logits_of_transformers(torch, tmp_path, name):
    model = build_theirs(torch, name)
    model.save_pretrained(tmp_path)
    config, specification, parameters = load(tmp_path)
    assert specification == TEXT
    assert_logits_equal(
        logits(config, specification, parameters, tokens()), their_logits(torch, model)
    )


def test_load_reads_sharded_files_of_transformers(torch, tmp_path):
    model = build_theirs(torch, "llama-grouped")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config, specification, parameters = load(tmp_path)
    assert_logits_equal(
        logits(config, specification, parameters, tokens()), their_logits(torch, model)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_exact(tmp_path, name):
    parameters = parameters_of(CONFIGS[name])
    export(CONFIGS[name], TEXT, parameters, tmp_path)
    config, specification, back = load(tmp_path)
    assert (config, specification) == (CONFIGS[name], TEXT)
    assert jax.tree.structure(back) == jax.tree.structure(parameters)
    jax.tree.map(np.testing.assert_array_equal, back, parameters)


def test_round_trip_through_shards_is_exact(tmp_path):
    parameters = parameters_of(LLAMA)
    export(LLAMA, TEXT, parameters, tmp_path, shard_bytes=20_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    contents = [load_file(file) for file in files]
    assert all(sum(x.nbytes for x in tensors.values()) <= 20_000 for tensors in contents)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))
    assert index["metadata"]["total_size"] == total
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[2], parameters)


def test_a_larger_table_than_the_vocabulary_is_kept(tmp_path):
    config = replace(GPT2, vocabulary_size=64)
    export(config, TEXT, parameters_of(config), tmp_path)
    back, specification, parameters = load(tmp_path)
    assert specification.classes == 64 and back.vocabulary_size is None
    assert parameters["embedding"].shape == (64, 24)


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the dict of tensors of an export."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_widened(tmp_path, dtype):
    parameters = parameters_of(LLAMA)
    export(LLAMA, TEXT, parameters, tmp_path)
    rewrite(
        tmp_path, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()})
    )
    _, _, back = load(tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype).astype(np.float32)),
        back,
        jax.tree.map(np.asarray, parameters),
    )


def test_files_of_the_bare_model_and_its_masks_are_read(tmp_path):
    # The file of the first GPT-2 on the Hub: no prefix, and causal masks among the weights.
    parameters = parameters_of(GPT2)
    export(GPT2, TEXT, parameters, tmp_path)

    def change(tensors):
        bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(bare, **{"h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32)})

    rewrite(tmp_path, change)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[2], parameters)


def test_biases_that_others_trained_into_an_export_are_kept(tmp_path):
    config = replace(GPT2, bias=False)
    export(config, TEXT, parameters_of(config), tmp_path)
    name = "transformer.h.1.mlp.c_fc.bias"
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensors[name] + 2}))
    back, _, parameters = load(tmp_path)
    assert back == GPT2
    expected = np.zeros((3, 96)) + 2 * np.eye(3)[:, 1:2]
    np.testing.assert_array_equal(parameters["blocks"]["mlp"]["up"]["bias"], expected)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (replace(GPT2, normalization="rms"), "normalization rms"),
        (replace(GPT2, activation="swiglu"), "activation swiglu"),
        (replace(GPT2, key_value_heads=2), "key_value_heads 2"),
        (replace(GPT2, head_dim=10), "head_dim 10"),
        (replace(LLAMA, normalization="layer"), "normalization layer"),
        (replace(LLAMA, activation="gelu"), "activation gelu"),
        (replace(LLAMA, experts=8), "a mixture of 8 experts"),
    ],
)
def test_export_names_the_field_that_neither_family_has(tmp_path, config, field):
    with pytest.raises(UserError, match=f"{field} .*cannot be exported"):
        export(config, TEXT, parameters_of(config), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_export_refuses_parameters_of_another_config(tmp_path):
    with pytest.raises(UserError, match=r"blocks.attention.key.bias has shape none.*\(3, 4, 6\)"):
        export(GPT2, TEXT, parameters_of(replace(GPT2, bias=False)), tmp_path)
    with pytest.raises(UserError, match=r"embedding has shape \(61, 24\).*\(70, 24\)"):
        export(GPT2, replace(TEXT, classes=70), parameters_of(GPT2), tmp_path)


def test_export_overwrites_nothing(tmp_path):
    export(GPT2, TEXT, parameters_of(GPT2), tmp_path)
    with pytest.raises(UserError, match="holds a model already .config.json.: export to another"):
        export(LLAMA, TEXT, parameters_of(LLAMA), tmp_path)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (GPT2, {"model_type": "bloom"}, "model_type bloom: only gpt2 and llama"),
        (GPT2, {"activation_function": "relu"}, "activation_function relu: use one of gelu_new"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        (GPT2, {"n_layer": None}, "n_layer None: it must be a whole number"),
        (GPT2, {"n_embd": 30}, "width 30 does not divide into 4 heads"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act gelu: .* hidden_act silu only"),
        (LLAMA, {"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters .*llama3.*default"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling .*linear"),
    ],
)
def test_settings_that_ours_does_not_have_are_refused(tmp_path, config, values, message):
    export(config, TEXT, parameters_of(config), tmp_path)
    reconfigure(tmp_path, **values)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("removed", ["rope_theta", "rope_parameters"])
def test_rope_theta_of_transformers_4_and_5_is_read(tmp_path, removed):
    config = replace(LLAMA, rope_theta=500.0)
    export(config, TEXT, parameters_of(config), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values[removed]
    path.write_text(json.dumps(values))
    assert load(tmp_path)[0].rope_theta == 500.0


def broken_folders() -> dict[str, tuple[Any, str]]:
    """What is done to an export of LLAMA, and the sentence that must come of it."""
    norm, query = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"

    def tensors(change):
        return lambda folder: rewrite(folder, change)

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def index(file: str):
        contents = json.dumps({"weight_map": {norm: file}})
        return lambda folder: (folder / "model.safetensors.index.json").write_text(contents)

    integers = np.zeros(24, np.int8)
    return {
        "missing": (
            tensors(lambda t: t.pop(norm)),
            r"lacks the tensor model.norm.weight .*\(24,\)",
        ),
        "shape": (
            tensors(lambda t: t.update({query: np.zeros((24, 20), np.float32)})),
            r"q_proj.weight .*shape \(24, 20\).*asks for \(24, 24\)",
        ),
        "unknown": (
            tensors(lambda t: t.update({"model.extra": t[norm] + 0})),
            "has a tensor model.extra, which a llama",
        ),
        "quantized": (tensors(lambda t: t.update({norm: integers})), "is int8, a quantized weight"),
        "pickle": (pickled, "pytorch_model.bin, a pickle.*convert to safetensors"),
        "cut": (cut, "no complete safetensors file"),
        "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetens"),
        "no config": (
            lambda folder: (folder / "config.json").unlink(),
            "config.json does not exist",
        ),
        "no JSON": (
            lambda folder: (folder / "config.json").write_text("{"),
            "cannot be read as JSON",
        ),
        "no shard": (index("model-00001-of-00002.safetensors"), "lacks model-00001-of-00002"),
        "shard outside": (index("../model.safetensors"), "lacks ../model.safetensors"),
    }


@pytest.mark.parametrize("name", broken_folders())
def test_broken_folders_are_one_sentence(tmp_path, name):
    damage, message = broken_folders()[name]
    export(LLAMA, TEXT, parameters_of(LLAMA), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)
