"""Law 2 for private runs: noise, draws and bounds are those of the step, and the ledger goes on."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.laws.test_resume import RELATIVE, Losses, assert_same_checkpoint

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(16, 16), dropout=0.1),
    data=ImagesConfig(name="digits", batch=40),
    optimizer=OptimizerConfig(learning_rate=0.01, clip=None, schedule="constant"),
    privacy=PrivacyConfig(
        unit="example", epsilon=8.0, delta=1e-4, noise_multiplier=1.0, quantile=0.5,
        quantile_noise=0.2, microbatch=8
    ),
    run=RunConfig(steps=8, log_every=1, checkpoint_every=2, evaluate_every=4, tensorboard=False),
)
"""
MESH = ["--cpu-devices", 4, "--mesh.data", 2, "--mesh.tensor", 2]


def test_private_runs_are_resumed_bit_for_bit_and_end_with_their_budget(
    tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    config = tmp_path / "private.py"
    config.write_text(CONFIG)
    folder, whole = resumed(config, *MESH, "--privacy.seed", 2**63 + 1)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    names = ("epsilon", "bound", "examples_drawn", "validation_loss")
    told, wanted = ([[r.get(n) for n in names] for r in metrics(f)] for f in (folder, whole))
    assert told == wanted
    epsilons = [row[0] for row in told]
    assert epsilons[0] > 0 and epsilons == sorted(set(epsilons))
    assert len({row[2] for row in told}) > 1

    one = ["--cpu-devices", 1, "--mesh.data", 1, "--mesh.tensor", 1]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    research("resume", whole, "--cpu-devices", 4, "--run.steps", 10)
    # Other noise from now on; what the first 8 steps told stays told.
    research("resume", other, *one, "--run.steps", 10)
    assert losses(other) == pytest.approx(losses(whole), rel=RELATIVE)
    more = [*one, "--run.steps", 12, "--privacy.noise-multiplier", 2]
    research("resume", other, *more)
    said = research("evaluate", other).stdout
    assert "is spent by 12 steps: 10 of noise 1 and q = 0.02784, 2 of noise 2 and q" in said
    spent = float(re.search(r"ε = ([\d.]+) at δ = 0.0001 for one example", said)[1])  # type: ignore[index]
    assert spent == pytest.approx(metrics(other)[-1]["epsilon"], rel=0.02)

    # A budget that is crossed on the way: the run ends before, and has saved.
    budget = ["--privacy.epsilon", spent * 1.05, "--privacy.noise-multiplier", 1]
    end = research("resume", other, *one, "--run.steps", 400, *budget, status=1).stderr
    step = int(re.search(r"step (\d+) of 400 would cross the budget", end)[1])  # type: ignore[index]
    assert f"step {step - 1} is saved" in end and 13 < step < 400
    assert metrics(other)[-1]["step"] == step - 1
    assert metrics(other)[-1]["epsilon"] <= spent * 1.05
    assert (other / "checkpoints" / str(step - 1)).exists()
    again = research("resume", other, "--cpu-devices", 1, status=2).stderr
    assert "one more step of noise 1 would cross the budget of ε = " in again


def test_correlated_noise_is_resumed_bit_for_bit(
    tmp_path: Path, research: Any, resumed: Any, losses: Losses
) -> None:
    config = tmp_path / "private.py"
    config.write_text(CONFIG.replace("quantile=0.5", 'mechanism="dp_ftrl", bands=3'))
    folder, whole = resumed(config, *MESH, "--privacy.seed", 5)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    change = ["--run.steps", 12, "--data.batch", 50]
    refused = research("resume", folder, "--cpu-devices", 4, *change, status=2).stderr
    assert "taken in turn, in 36 groups, so far, and would be taken in turn, in 29" in refused


def test_a_seed_that_nobody_gave_is_drawn_and_kept(tmp_path: Path, research: Any) -> None:
    config = tmp_path / "private.py"
    config.write_text(CONFIG)
    seeds = []
    for name in ("one", "other"):
        research("train", config, "--run.steps", 1, "--run.directory", tmp_path / name)
        written = json.loads((tmp_path / name / "config.json").read_text())
        seeds.append(written["privacy"]["seed"])
    assert seeds[0] != seeds[1] and max(seeds) > 2**40


ROUNDS = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(16, 16)),
    data=ImagesConfig(name="digits", batch=10),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, clip=None, schedule="constant"),
    federated=FederatedConfig("fedavg", cohort=6, sampling="poisson", weighting="uniform"),
    partition=PartitionConfig("iid", clients=30),
    privacy=PrivacyConfig(unit="client", epsilon=20.0, delta=1e-3, seed=2**63 + 1),
    run=RunConfig(steps=8, log_every=1, checkpoint_every=2, evaluate_every=4, tensorboard=False),
)
"""


def test_private_rounds_are_resumed_bit_for_bit(
    tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    config = tmp_path / "rounds.py"
    config.write_text(ROUNDS)
    mesh = ["--cpu-devices", 4, "--mesh.replica", 2, "--mesh.tensor", 2, "--mesh.data", 1]
    server = ["--federated.server.name", "adam", "--federated.server.learning-rate", 0.01]
    folder, whole = resumed(config, *mesh, *server)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    told, wanted = ([r["epsilon"] for r in metrics(f)] for f in (folder, whole))
    assert told == wanted == sorted(set(wanted)) and 18 < wanted[-1] <= 20
    assert len({r["clients"] for r in metrics(whole)}) > 1
    assert metrics(whole)[-1]["clients_dropped"] == 0
    said = research("evaluate", whole).stdout
    assert "for one client (add or remove one, Poisson sampling, PLD accountant)" in said
    assert "is spent by 8 steps" in said
