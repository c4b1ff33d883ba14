"""Transformers out to Hugging Face folders, and in from them: `config.json` and safetensors.

Two of their families are spoken, as `transformers` 4 and 5 write and read them:

* `gpt2` (Radford et al. 2019): learned positions, LayerNorm, a gelu, biases everywhere. Models
  without biases are exported with zero ones, and a note in `config.json` lets `load` drop them.
* `llama` (Touvron et al. 2023, arXiv:2302.13971; grouped queries and untied or tied head): rotary
  positions, RMSNorm, swiglu.

Weights are float32 in both directions; float16 and bfloat16 files are widened. No pickle is read.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from research.errors import UserError
from research.models.huggingface_config import from_huggingface, to_huggingface
from research.models.huggingface_tensors import Tensor, allocate, lookup, tensors_of
from research.models.specification import Specification
from research.models.transformer_config import TransformerConfig

SHARD_BYTES = 5_000_000_000  # Hugging Face's own limit, "5GB"
INDEX = "model.safetensors.index.json"

# Left in old files by PyTorch modules: causal masks and rotary tables, no weights.
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")

# Of a causal model's tensors; files of the bare model have none.
PREFIX = {"gpt2": "transformer.", "llama": "model."}


def export(
    config: TransformerConfig,
    specification: Specification,
    parameters: dict[str, Any],
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` reads.

    `parameters` is the nested dict of the module (blocks stacked over layers), of host or device
    arrays that this process can read in full. More than `shard_bytes` of weights are split over
    several files with an index. `config.json` is written last: a folder without it is incomplete.

    Raises UserError where neither family can express the config (naming the field), where the
    parameters do not fit it, or where the folder holds a model already.
    """
    from safetensors.numpy import save_file

    config.check(specification)
    family, description = to_huggingface(config, specification)
    tensors = list(tensors_of(family, config, specification))
    if family == "llama" and not config.bias:
        tensors = [tensor for tensor in tensors if not tensor.name.endswith(".bias")]
    _check_parameters(parameters, tensors, config)
    folder.mkdir(parents=True, exist_ok=True)
    if held := sorted([*folder.glob("config.json"), *folder.glob("model*.safetensors*")]):
        raise UserError(
            f"{folder} holds a model already ({held[0].name}): export to another folder"
        )

    shards = list(_shards(tensors, shard_bytes))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        contents = {tensor.name: tensor.from_ours(parameters) for tensor in shard}
        save_file(contents, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_bytes, tensors))},
            "weight_map": {
                tensor.name: name
                for name, shard in zip(names, shards, strict=True)
                for tensor in shard
            },
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def load(folder: Path) -> tuple[TransformerConfig, Specification, dict[str, Any]]:
    """Reads a GPT-2 or Llama folder: the config, the data's shape (longest context, vocabulary) and
    the parameters, a nested dict of float32 NumPy arrays with blocks stacked over layers.

    Raises UserError for folders without safetensors (pickled weights are not read), for other
    families or settings that our transformer does not have, and for tensors that are missing, not
    known, of another shape or of whole numbers.
    """
    description = _read_json(folder / "config.json")
    family, config, specification = from_huggingface(description, folder / "config.json")
    config.check(specification)
    files = _tensor_files(folder)
    prefixes = (PREFIX[family], "lm_head.")
    files = {
        name if name.startswith(prefixes) else PREFIX[family] + name: place
        for name, place in files.items()
    }
    tensors = list(tensors_of(family, config, specification))
    known = {tensor.name for tensor in tensors}
    known.add("lm_head.weight")  # a tied head may be written twice
    for name, (_, written) in files.items():
        if name not in known and not name.endswith(NO_WEIGHTS):
            raise UserError(
                f"{folder} has a tensor {written}, which a {family} of its config.json lacks: "
                f"its weights and its config.json are of different models"
            )

    def needed(tensor: Tensor) -> bool:
        if family == "gpt2" or not tensor.name.endswith(".bias"):
            return True
        return bool(description.get("attention_bias" if "_attn." in tensor.name else "mlp_bias"))

    parameters = allocate(tensors, config.layers, bias=True)
    with _Reader(folder) as reader:
        for tensor in filter(needed, tensors):
            if tensor.name not in files:
                raise UserError(
                    f"{folder} lacks the tensor {tensor.name} of shape {tensor.shape}: its "
                    f"download or export was not finished, or config.json is of another model"
                )
            value = reader.read(*files[tensor.name])
            if value.shape != tensor.shape:
                raise UserError(
                    f"tensor {tensor.name} in {folder} has shape {value.shape}, but its "
                    f"config.json asks for {tensor.shape}: they are of different models"
                )
            tensor.into_ours(value, parameters)
    biases = {path for tensor in tensors for path in tensor.paths if path[-1] == "bias"}
    if any(lookup(parameters, path).any() for path in biases):
        # Also where config.json says `"bias": false`: others may have trained an export of ours.
        config = replace(config, bias=True)
    if not config.bias:
        for path in biases:
            del lookup(parameters, path[:-1])["bias"]
    return config, specification, parameters


class _Reader:
    """Reads tensors out of a folder's safetensors files, one file open at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name: str | None = None
        self.file: Any = None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self.file = None

    def read(self, file: str, tensor: str) -> np.ndarray:
        """The tensor in float32. Raises UserError for whole numbers (quantized weights)."""
        from safetensors import SafetensorError

        if file != self.name:
            self.file, self.name = _open(self.folder / file), file
        try:
            value = self.file.get_tensor(tensor)
        except SafetensorError as error:
            raise UserError(
                f"tensor {tensor} cannot be read from {self.folder / file} ({error})"
            ) from error
        if value.dtype not in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
            raise UserError(
                f"tensor {tensor} in {self.folder} is {value.dtype}, a quantized weight: use a "
                f"folder with float32, float16 or bfloat16 weights"
            )
        return value.astype(np.float32)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no complete safetensors file ({error}): fetch it anew"
        ) from error


def _tensor_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Of each tensor: the file that holds it, and its name there."""
    if (folder / INDEX).exists():
        index = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise UserError(f"{folder / INDEX} has no weight_map: fetch it anew")
        for file in sorted({str(file) for file in index.values()}):
            if Path(file).name != file or not (folder / file).is_file():
                raise UserError(f"{folder} lacks {file}, which {INDEX} names: fetch it")
        return {name: (str(file), name) for name, file in index.items()}
    if (folder / "model.safetensors").exists():
        names = _open(folder / "model.safetensors").keys()
        return {name: ("model.safetensors", name) for name in names}
    for pattern in ("*.bin", "*.pt", "*.pth", "*.bin.index.json"):
        for pickled in sorted(folder.glob(pattern)):
            raise UserError(
                f"{folder} keeps its weights in {pickled.name}, a pickle, which can run any code "
                f"and is not read: convert to safetensors, for example with transformers' "
                f"save_pretrained"
            )
    raise UserError(f"{folder} has no model.safetensors: it holds no model, or not all of it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a Hugging Face model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(contents, dict):
        raise UserError(f"{path} holds a {type(contents).__name__}, not an object of settings")
    return contents


def _bytes(tensor: Tensor) -> int:
    return 4 * int(np.prod(tensor.shape))


def _shards(tensors: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Runs of tensors of at most `limit` bytes (or one tensor, where it alone is larger)."""
    shard: list[Tensor] = []
    for tensor in tensors:
        if shard and sum(map(_bytes, shard)) + _bytes(tensor) > limit:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _check_parameters(
    parameters: dict[str, Any], tensors: list[Tensor], config: TransformerConfig
) -> None:
    """Raises UserError unless `parameters` are exactly those of `config`."""

    def shapes(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from shapes(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", tuple(np.shape(value))

    expected = dict(shapes(allocate(tensors, config.layers, config.bias)))
    given = dict(shapes(parameters))
    for path in sorted(expected.keys() | given.keys()):
        if expected.get(path) != given.get(path):
            raise UserError(
                f"parameter {path} has shape {given.get(path, 'none')}, but the config asks for "
                f"{expected.get(path, 'none')}: export with the config that they were trained with"
            )
