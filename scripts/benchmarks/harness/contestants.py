"""Both sides of a comparison: one transformer experiment, ours and PyTorch's, as workers."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.workers import Worker
from research.experiment import Experiment

UPDATES = 3
"""Updates over which the losses of both sides are compared."""


def reigen(
    name: str, experiment: Experiment, cpus: Sequence[int], environment: dict[str, str]
) -> Worker:
    """Our side of `experiment`."""
    settings = {"experiment": experiment.to_json()}
    return Worker(name, "harness.reigen_worker", [json.dumps(settings)], cpus, environment)


def pytorch(
    name: str,
    experiment: Experiment,
    vocabulary: int,
    cpus: Sequence[int],
    *,
    device: str = "cpu",
    compiled: bool = False,
    fused: bool = False,
    keep_memory: bool = False,
) -> Worker:
    """PyTorch's side of `experiment`, with `vocabulary` rows in the embedding table.

    `fused`: AdamW as one kernel; `keep_memory`: malloc keeps what is freed, as ours does.
    """
    model, optimizer = experiment.model, experiment.optimizer
    settings: dict[str, Any] = {
        "sizes": {
            "layers": model.layers,
            "width": model.width,
            "heads": model.heads,
            "context": experiment.data.context,
            "vocabulary": vocabulary,
            "exact_gelu": model.activation == "gelu_exact",
            "epsilon": model.epsilon,
        },
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "weight_decay": optimizer.weight_decay,
        "clip": optimizer.clip,
        "dtype": model.dtype,
        "device": device,
        "threads": len(cpus),
        "compile": compiled,
        "fused": fused,
        "keep_memory": keep_memory,
    }
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1"} if device == "cpu" else {}
    return Worker(name, "harness.torch_worker", [json.dumps(settings)], cpus, environment)


def needs_torch(without: str) -> None:
    """Raises SystemExit where PyTorch is missing; `without` is the option that does without it."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"PyTorch is not installed: make setup EXTRA=torch, or {without}")


def same_model(
    ours: list[float], theirs: list[float], name: str, first: float, last: float
) -> dict[str, float]:
    """Differences of the initial losses and of those after `UPDATES` updates.

    Raises SystemExit where they are larger than `first` and `last`: it is not the same model.
    """
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    if differences[0] > first or differences[-1] > last:
        raise SystemExit(
            f"{name} does not compute the same model: losses {theirs}, ours {ours}; the first may "
            f"differ by {first:g}, the last by {last:g}"
        )
    return {"initial": differences[0], f"after_{UPDATES}_updates": differences[-1]}


def table_rows(weights: Path) -> int:
    """Rows of the embedding table in what `reigen_worker` wrote."""
    import numpy as np

    with np.load(weights) as arrays:
        return arrays["parameters.embedding"].shape[0]
