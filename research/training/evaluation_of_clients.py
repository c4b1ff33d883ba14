"""Evaluation by client: a good mean may hide clients that are served badly."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.data import Clients, Cohorts, HeldOut
from research.data.clients import NOBODY
from research.data.dataset import Example

WORST = 10
"""The worst tenth of clients, at least one, has a mean of its own."""


def sums_by_client(totals: np.ndarray, owners: np.ndarray, clients: int) -> np.ndarray:
    """float64 [clients, 3]: the sums of `totals` [examples, 3] (loss, correct, targets) over the
    examples of each client, by `owners` [examples] (NOBODY's are left out)."""
    made = np.zeros((clients, totals.shape[1]))
    owned = owners != NOBODY
    np.add.at(made, owners[owned], totals[owned])
    return made


def spread(sums: np.ndarray, what: str) -> dict[str, float]:
    """Of the clients' loss (nats) and accuracy, by their `sums` [clients, 3] as of
    `sums_by_client`: the mean of clients, each counted once, their standard deviation, and the mean
    of the tenth whose loss is highest or whose accuracy is lowest, as `what`_loss_mean, ...

    Clients without held-out examples are left out; empty where no client has any.
    """
    evaluated = sums[sums[:, 2] > 0]
    if not len(evaluated):
        return {}
    worst = math.ceil(len(evaluated) / WORST)
    result = {}
    for column, name, sign in ((0, "loss", -1), (1, "accuracy", 1)):
        each = evaluated[:, column] / evaluated[:, 2]
        result[f"{what}_{name}_mean"] = float(each.mean())
        result[f"{what}_{name}_deviation"] = float(each.std())
        result[f"{what}_{name}_worst_tenth"] = float(sign * np.sort(sign * each)[:worst].mean())
    return result


def evaluate_by_client(
    totals: np.ndarray, examples: np.ndarray, clients: Clients
) -> dict[str, float]:
    """`spread` of the `totals` [examples, 3] of those `examples` of a split, and how many clients
    those are of: `clients_evaluated`, `clients_without_examples`."""
    sums = sums_by_client(totals, clients.owners[examples], len(clients))
    evaluated = int(np.count_nonzero(sums[:, 2]))
    return {
        "clients_evaluated": evaluated,
        "clients_without_examples": len(clients) - evaluated,
        **spread(sums, "client"),
    }


def evaluate_personal(
    evaluate_cohort: Any,
    state: Any,
    held: HeldOut,
    cohorts: Cohorts,
    rows: np.ndarray,
    place: Callable[[Example], dict[str, jax.Array]],
) -> dict[str, float]:
    """`spread` of the clients by their own models, cohort by cohort; of each, this process reads
    the given `rows`, and `place` puts them on the devices."""
    last, parts = len(held.clients) - 1, []
    for start in range(0, len(held.clients), cohorts.cohort):
        clients = held.clients[np.minimum(start + rows, last)]  # the last one fills up
        batch = place(cohorts.once(clients) | held.rows(clients))
        parts.append(np.stack(jax.device_get(evaluate_cohort(state, batch)), axis=-1))
    return spread(np.concatenate(parts)[: last + 1], "personal") if parts else {}


def spreads_in_words(metrics: dict[str, float]) -> list[str]:
    """Lines that tell of `spread`, for those who were evaluated."""
    lines = []
    for what, of in (("client", "the server's model"), ("personal", "their own models")):
        if f"{what}_loss_mean" not in metrics:
            continue
        parts = []
        for name in ("loss", "accuracy"):
            mean, deviation, worst = (
                metrics[f"{what}_{name}_{each}"] for each in ("mean", "deviation", "worst_tenth")
            )
            parts.append(f"{name} {mean:.4f} ± {deviation:.4f}, worst tenth {worst:.4f}")
        without = int(metrics["clients_without_examples"])
        left_out = f" ({without} without examples left out)" if without else ""
        clients = f"{int(metrics['clients_evaluated'])} clients{left_out}"
        lines.append(f"{clients} by {of}: {'; '.join(parts)}")
    return lines
