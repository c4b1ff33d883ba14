"""Law 3: replicas one to a device, many to a device one after another, or side by side, are the
same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from research.parallel.mesh import MeshConfig

REPLICAS = 4
# Side by side, products are of more rows at once, and sums are taken in another order: tolerance
# and reason are those of test_layout.py. A mean over seats first, then devices, is another order.
RELATIVE = 2e-5


def assert_close(one: Any, other: Any) -> None:
    for (path, leaf), its in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        scale = max(np.abs(its).max(), 1e-3)
        np.testing.assert_allclose(
            leaf, its, rtol=0, atol=RELATIVE * scale, err_msg=jax.tree_util.keystr(path)
        )


def test_a_plan_changes_nothing(rule: Any, small: Any, run: Any, rounding: Any) -> None:
    case = small["table"]
    exchange = replace(rule, replicas=REPLICAS)
    assert case.model.dropout > 0  # and draws are those of a replica, wherever it is
    first = run(case, MeshConfig(replica=REPLICAS), REPLICAS, exchange=exchange)
    initial = first.init()
    losses = [loss for loss, _ in first.trace(initial, 5)]
    state = jax.device_get(first.state)
    assert max(losses) - min(losses) > 1e-3
    for plan in ("scan", "vmap"):
        here = run(case, MeshConfig(replica=2), 2, exchange=replace(exchange, plan=plan))
        its_losses = [loss for loss, _ in here.trace(initial, 5)]
        its_state = jax.device_get(here.state)
        if exchange.compression in rounding:  # tolerance and reason are those of test_layout.py
            assert its_losses == pytest.approx(losses, rel=1e-3), plan
            continue
        assert its_losses == pytest.approx(losses, rel=RELATIVE), plan
        assert_close(its_state, state)


@pytest.mark.distributed
def test_two_processes_are_two_replicas_of_one(
    config: Path, tmp_path: Path, research: Any, losses: Any
) -> None:
    words = ["--mesh.replica", 2, "--mesh.data", 1, "--exchange.rule", "diloco", "--run.steps", 6]
    words += ["--exchange.period", 2, "--exchange.compression", "bfloat16"]
    one, two = tmp_path / "one", tmp_path / "two"
    research("train", config, "--cpu-devices", 2, *words, "--run.directory", one)
    launch = ["launch", "--processes", 2, "--", "train", config, "--cpu-devices", 1]
    research(*launch, *words, "--run.directory", two)
    assert losses(two) == pytest.approx(losses(one), rel=RELATIVE)


@pytest.mark.distributed
def test_two_processes_hold_the_workers_of_one_server(
    config: Path, tmp_path: Path, research: Any, losses: Any
) -> None:
    """In the same virtual time."""
    words = ["--mesh.replica", 2, "--mesh.data", 1, "--asynchronous.rule", "dc_asgd"]
    words += ["--asynchronous.durations", "exponential", "--run.steps", 6]
    one, two = tmp_path / "one", tmp_path / "two"
    research("train", config, "--cpu-devices", 2, *words, "--run.directory", one)
    launch = ["launch", "--processes", 2, "--", "train", config, "--cpu-devices", 1]
    research(*launch, *words, "--run.directory", two)
    assert losses(two) == pytest.approx(losses(one), rel=RELATIVE)
