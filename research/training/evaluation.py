"""Evaluation: the totals of a split, batch by batch, each example counted once."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from research.errors import RunError

IN_FLIGHT = 8
"""Batches that may wait on the device, so that a large split does not pile up there."""


def evaluate(
    evaluate_batch: Any, state: Any, batches: Iterable[dict[str, jax.Array]], unit: str
) -> dict[str, float]:
    """Mean loss (nats) and accuracy over all targets of `batches`, and perplexity for tokens.

    Raises RunError if the batches hold no target at all.
    """
    totals = []
    for batch in batches:
        totals.append(evaluate_batch(state, batch))
        if len(totals) > IN_FLIGHT:
            totals[-IN_FLIGHT].loss.block_until_ready()
    # Added in float64: the count of a large split is beyond float32's whole numbers.
    loss, correct, count = np.sum(
        np.array(jax.device_get(totals), np.float64).reshape(-1, 3), axis=0
    )
    if count == 0:
        raise RunError("the split to evaluate holds no example: give it a larger share of the data")
    result = {"loss": float(loss / count), "accuracy": float(correct / count)}
    if unit == "tokens":
        result["perplexity"] = math.exp(min(result["loss"], 700.0))
    return result
