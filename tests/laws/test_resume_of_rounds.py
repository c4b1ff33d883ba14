"""Law 2 for rounds of clients: k + (n - k) rounds are n, with server, table and cohorts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.laws.test_resume import RELATIVE, Losses, assert_same_checkpoint

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(16, 16), dropout=0.1),
    data=ImagesConfig(name="digits", batch=10),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, clip=None, warmup_steps=2),
    federated=FederatedConfig("scaffold", cohort=4, epochs=2, failing=0.2, stragglers=0.5),
    partition=PartitionConfig("dirichlet_by_label", clients=13),
    run=RunConfig(steps=8, log_every=1, checkpoint_every=2, evaluate_every=4, tensorboard=False),
)
"""
MESH = ["--cpu-devices", 4, "--mesh.replica", 2, "--mesh.tensor", 2, "--mesh.data", 1]
ROBUST = ["--federated.weighting", "uniform", "--attack.name", "alie"]
ROBUST += ["--federated.aggregation.rule", "centered_clipping", "--federated.aggregation.clip", 2]
SERVER = ["--federated.server.name", "adam", "--federated.server.learning-rate", 0.01]


def test_rounds_are_resumed_bit_for_bit_and_on_another_mesh(
    tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    config = tmp_path / "rounds.py"
    config.write_text(CONFIG)
    folder, whole = resumed(config, *MESH, *SERVER, *ROBUST)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    names = ("clients", "clients_dropped", "byzantine", "bytes_sent_total", "validation_loss")
    told, wanted = ([[r.get(n) for n in names] for r in metrics(f)] for f in (folder, whole))
    assert told == wanted
    assert metrics(whole)[-1]["clients_dropped"] > 0
    clients = json.loads((folder / "clients.json").read_text())
    assert clients["train"]["clients"] == len(clients["train"]["sizes"]) == 13
    assert "13 clients of" in (folder / "clients.svg").read_text()

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    research("resume", whole, "--cpu-devices", 4, "--run.steps", 10)
    one = ["--cpu-devices", 1, "--mesh.replica", 1, "--mesh.tensor", 1, "--federated.plan", "vmap"]
    research("resume", other, *one, "--run.steps", 10)
    assert losses(other) == pytest.approx(losses(whole), rel=RELATIVE)
    assert "step 10, test split" in research("evaluate", other, *one).stdout

    moved = research("resume", other, "--partition.seed", 1, "--run.steps", 12, status=2)
    assert "have other examples than when it was begun" in moved.stderr


@pytest.mark.parametrize(("rule", "table"), [("fedrep", "host"), ("fedbuff", "device")])
def test_own_heads_and_late_clients_are_resumed_bit_for_bit(
    rule: str, table: str, tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    config = tmp_path / "rounds.py"
    config.write_text(CONFIG)
    how = [*SERVER, "--federated.rule", rule, "--federated.fine-tuning", 2]
    how += ["--federated.table", table]
    folder, whole = resumed(config, *MESH, *how)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    names = ("bytes_sent_total", "validation_personal_loss_worst_tenth", "virtual_seconds")
    told, wanted = ([[r.get(n) for n in names] for r in metrics(f)] for f in (folder, whole))
    assert told == wanted and wanted[-1][1] is not None
    assert "clients by their own models" in research("evaluate", folder).stdout
