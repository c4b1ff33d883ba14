"""Evaluation: the totals of a split, batch by batch, each example counted once."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from research.errors import RunError

ALL = ("loss", "accuracy", "perplexity")
"""What is told of all examples of a split."""

IN_FLIGHT = 8
"""Batches that may wait on the device, so that a large split does not pile up there."""


def evaluate(
    evaluate_batch: Any, state: Any, batches: Iterable[dict[str, jax.Array]], unit: str
) -> dict[str, float]:
    """Mean loss (nats) and accuracy over all targets of `batches`, and perplexity for tokens.

    Raises RunError if the batches hold no target at all.
    """
    return summary(totals_of(evaluate_batch, state, batches), unit)


def totals_of(
    evaluate_batch: Any, state: Any, batches: Iterable[dict[str, jax.Array]]
) -> np.ndarray:
    """float64 [n, 3]: loss, correct and targets of `batches`, or of each of their rows in order,
    whichever `evaluate_batch` gives."""
    totals = []
    for batch in batches:
        totals.append(evaluate_batch(state, batch))
        if len(totals) > IN_FLIGHT:
            totals[-IN_FLIGHT].loss.block_until_ready()
    parts = [np.stack(part, axis=-1).reshape(-1, 3) for part in jax.device_get(totals)]
    # In float64: the count of a large split is beyond float32's whole numbers.
    return np.concatenate([np.zeros((0, 3)), *parts])


def summary(totals: np.ndarray, unit: str) -> dict[str, float]:
    """What `evaluate` gives, from `totals` [n, 3]."""
    loss, correct, count = totals.sum(axis=0)
    if count == 0:
        raise RunError("the split to evaluate holds no example: give it a larger share of the data")
    result = {"loss": float(loss / count), "accuracy": float(correct / count)}
    if unit == "tokens":
        result["perplexity"] = math.exp(min(result["loss"], 700.0))
    return result
