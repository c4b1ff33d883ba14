"""Evaluation: every target counts once."""

import math
from typing import Any

import jax.numpy as jnp
import pytest

from research.errors import RunError
from research.learning import Totals
from research.training.evaluation import evaluate


def batch(loss: float, correct: float, targets: float) -> dict[str, Any]:
    return {"totals": Totals(*(jnp.float32(v) for v in (loss, correct, targets)))}


def test_the_mean_is_over_targets_not_over_batches() -> None:
    batches = [batch(20.0, 6, 10), batch(9.0, 1, 2)] * 8
    result = evaluate(lambda state, batch: batch["totals"], None, batches, "tokens")
    assert result["loss"] == pytest.approx(29 / 12)  # (2 + 4.5) / 2 would be the mean of means
    assert result["accuracy"] == pytest.approx(7 / 12)
    assert result["perplexity"] == pytest.approx(math.exp(29 / 12))


def test_examples_have_no_perplexity() -> None:
    result = evaluate(lambda state, batch: batch["totals"], None, [batch(1.0, 1, 1)], "examples")
    assert result.keys() == {"loss", "accuracy"}


def test_counts_beyond_the_whole_numbers_of_float32_add_up() -> None:
    batches = [batch(1.0, 1.0, 2.0**24)] + [batch(1.0, 1.0, 1.0)] * 9
    result = evaluate(lambda state, batch: batch["totals"], None, batches, "examples")
    assert result["loss"] == 10 / (2**24 + 9)


def test_a_split_without_examples_is_an_error() -> None:
    with pytest.raises(RunError, match="holds no example"):
        evaluate(lambda state, batch: batch["totals"], None, [], "tokens")
