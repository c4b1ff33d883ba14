"""Evaluation by client: each client's own sums, and how clients are spread."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data import Clients
from research.data.clients import NOBODY
from research.training.evaluation_of_clients import evaluate_by_client, spread, sums_by_client

OWNERS = np.array([1, 0, NOBODY, 1, 2, 0])
TOTALS = np.array([[2, 1, 1], [4, 0, 1], [9, 1, 1], [6, 0, 1], [1, 1, 1], [0, 1, 1]], float)


def test_each_client_has_the_sums_of_its_examples() -> None:
    sums = sums_by_client(TOTALS, OWNERS, 4)
    np.testing.assert_array_equal(sums, [[4, 1, 2], [8, 1, 2], [1, 1, 1], [0, 0, 0]])


def test_the_worst_tenth_has_the_highest_loss_and_the_lowest_accuracy() -> None:
    """20 clients of 10 targets: the worst 2 by loss are not the worst 2 by accuracy."""
    loss, correct = np.arange(20.0), np.full(20, 9.0)
    correct[3], correct[4] = 1, 3
    told = spread(np.stack([10 * loss, correct, np.full(20, 10.0)], axis=1), "client")
    assert told["client_loss_mean"] == 9.5
    assert told["client_loss_deviation"] == pytest.approx(np.sqrt((20**2 - 1) / 12))
    assert told["client_loss_worst_tenth"] == 18.5
    assert told["client_accuracy_worst_tenth"] == pytest.approx(0.2)
    assert spread(np.zeros((3, 3)), "client") == {}


def test_clients_without_examples_are_counted_and_left_out() -> None:
    clients = Clients.of(OWNERS, np.zeros(6, np.int64), 1, ("a", "b", "c", "d"))
    told = evaluate_by_client(TOTALS, np.arange(6), clients)
    assert (told["clients_evaluated"], told["clients_without_examples"]) == (3, 1)
    assert told["client_loss_mean"] == pytest.approx((2 + 4 + 1) / 3)
    some = np.array([0, 3])  # an evaluation of some batches only: both are of client 1
    assert evaluate_by_client(TOTALS[some], some, clients)["clients_evaluated"] == 1


CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=LinearConfig(),
    data=ImagesConfig(name="digits", batch=10),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, clip=None, schedule="constant"),
    federated=FederatedConfig("fedavg", cohort=4),
    partition=PartitionConfig("dirichlet_by_label", clients=8, alpha=0.3),
    run=RunConfig(steps=4, evaluate_every=2, tensorboard=False),
)
"""


def test_a_run_tells_of_its_clients(tmp_path: Path, research: Any, metrics: Any) -> None:
    """At every evaluation, and when it is evaluated again."""
    config, folder = tmp_path / "clients.py", tmp_path / "run"
    config.write_text(CONFIG)
    research("train", config, "--run.directory", folder)
    told = [record for record in metrics(folder) if "validation_loss" in record]
    assert [record["step"] for record in told] == [2, 4]
    assert all(
        record["validation_client_loss_worst_tenth"] > record["validation_client_loss_mean"]
        for record in told
    )
    shown = research("evaluate", folder).stdout
    written = json.loads((folder / "evaluation.json").read_text())
    clients = json.loads((folder / "clients.json").read_text())["test"]
    assert written["clients_evaluated"] == np.count_nonzero(clients["sizes"])
    assert f"loss {written['client_loss_mean']:.4f}" in shown
    assert "clients by the server's model" in shown
