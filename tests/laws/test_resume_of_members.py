"""Law 2 for ensembles: k + (n - k) steps are n, for every member; and what an evaluation says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.laws.test_resume import RELATIVE, Losses, assert_same_checkpoint

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(16, 16)),
    data=ImagesConfig(name="digits", batch=8),
    optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, warmup_steps=2),
    ensemble=EnsembleConfig(
        "deep", members=4, share="bagging", learning_rates=(1e-3, 3e-3, 1e-2, 1e30),
        dropouts=(0.0, 0.1, 0.2, 0.0)
    ),
    run=RunConfig(steps=8, log_every=1, checkpoint_every=2, evaluate_every=4, tensorboard=False),
)
"""
MESH = ["--cpu-devices", 4, "--mesh.replica", 2, "--mesh.tensor", 2, "--mesh.data", 1]


def test_members_are_resumed_bit_for_bit_and_on_another_mesh(
    tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    """One of them diverges by its rate, and stays frozen."""
    config = tmp_path / "members.py"
    config.write_text(CONFIG)
    folder, whole = resumed(config, *MESH)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    assert metrics(whole)[-1]["members_frozen"] == 1

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    research("resume", whole, "--cpu-devices", 4, "--run.steps", 10)
    one = ["--cpu-devices", 1, "--mesh.replica", 1, "--mesh.tensor", 1, "--ensemble.plan", "vmap"]
    research("resume", other, *one, "--run.steps", 10)
    assert losses(other) == pytest.approx(losses(whole), rel=RELATIVE)

    printed = research("evaluate", other, *one).stdout
    assert "step 10, test split of digits" in printed and "stacked" in printed
    ensemble = json.loads((other / "evaluation.json").read_text())["ensemble"]
    assert len(ensemble["members"]) == len(ensemble["by_members"]) == 3  # of 4, one is frozen
    first, together = ensemble["members"][0], ensemble["combinations"]["mean"]
    assert ensemble["by_members"][0] == pytest.approx(first, rel=1e-5)
    assert ensemble["by_members"][-1] == together
    assert {"reliability.svg", "nll_over_members.svg"} <= {each.name for each in other.iterdir()}
