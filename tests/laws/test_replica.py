"""Law 3: replicas one to a device, many to a device one after another, or side by side, are the
same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from research.data import Clients, Cohorts, LabeledArrays
from research.exchange.privacy import Event, ledger
from research.exchange.privacy.release import Release
from research.learning import FederatedConfig, OptimizerConfig, Synchronous
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


CLIENTS = FederatedConfig("scaffold", cohort=12, epochs=2, stragglers=0.5, weighting="uniform")
PRIVATE = replace(CLIENTS, rule="fedavg", sampling="poisson")
RELEASE = Release(0.1, Event(0.5, 0.75), 12.0)
PLANS: dict[str, tuple[int, dict[str, Any]]] = {
    "chunk": (1, {"plan": "chunk", "width": 4}),
    "vmap": (1, {"plan": "vmap"}),
    "two-devices": (2, {"plan": "scan"}),
    "two-devices-chunk-host": (2, {"plan": "chunk", "width": 3, "table": "host"}),
}


def rounds(case: Any, devices: int, private: bool = False, **plan: Any) -> tuple[Any, list[float]]:
    """The state after three rounds of clients of unequal sizes, and their losses."""
    draw = np.random.default_rng(5)
    inputs = draw.normal(size=(90, *case.specification.shape)).astype(np.float32)
    labels = draw.integers(0, case.specification.classes, 90)
    owners = np.concatenate([np.arange(16), draw.integers(0, 16, 90 - 16)])
    clients = Clients.of(owners, labels, case.specification.classes, tuple(map(str, range(16))))
    local = OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant", clip=None)
    config = replace(PRIVATE if private else CLIENTS, **plan)
    mesh = MeshConfig(replica=devices, data=1).build(jax.devices("cpu")[:devices])
    one = Synchronous(
        case.model,
        case.specification,
        local.build(10),
        local.learning_rate_schedule(10),
        mesh,
        outside=("replica",),
    )
    release = RELEASE if private else None
    here = config.build(one, local, 10, len(clients), release=release, secret=3)
    cohorts = Cohorts(
        LabeledArrays(inputs, labels),
        clients,
        12,
        4,
        2,
        seed=1,
        stragglers=0.5,
        devices=devices,
        sampling=config.sampling,
        places=config.places(len(clients), devices),
        secret=9,
    )
    with jax.set_mesh(mesh):
        state, losses = here.init(), []
        for step in range(3):
            rows = cohorts.rows(step, range(cohorts.cohort))
            state, metrics = here.step(state, rows | here.events(step))
            losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def test_a_plan_of_clients_changes_nothing(small: Any) -> None:
    """One after another, in groups, side by side, on two devices, with their table on the host."""
    case = small["table"]
    assert case.model.dropout > 0
    state, losses = rounds(case, 1)
    assert max(losses) - min(losses) > 1e-3
    for name, (devices, plan) in PLANS.items():
        its_state, its_losses = rounds(case, devices, **plan)
        assert its_losses == pytest.approx(losses, rel=RELATIVE), name
        assert_close(its_state, state)


def test_a_plan_of_private_clients_changes_nothing(small: Any) -> None:
    """Neither who is drawn nor the noise hangs on where clients are computed."""
    state, _ = rounds(small["table"], 1, private=True)
    for name in ("vmap", "two-devices"):
        devices, plan = PLANS[name]
        its_state, _ = rounds(small["table"], devices, private=True, **plan)
        assert_close(its_state, state)
    assert ledger.spent(state.stages["noise"]) == [(RELEASE.event, 3)]


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


@pytest.mark.distributed
@pytest.mark.parametrize("axis", ["replica", "data"])
def test_two_processes_hold_the_members_of_one_ensemble(
    axis: str, config: Path, tmp_path: Path, research: Any, losses: Any
) -> None:
    """A member each, or half of the batch of both; and what they answer together."""
    words = ["--mesh.replica", 1, "--mesh.data", 1, f"--mesh.{axis}", 2, "--run.steps", 4]
    words += ["--ensemble.rule", "deep", "--ensemble.members", 2]
    one, two = tmp_path / "one", tmp_path / "two"
    research("train", config, "--cpu-devices", 2, *words, "--run.directory", one)
    launch = ["launch", "--processes", 2, "--", "train", config, "--cpu-devices", 1]
    research(*launch, *words, "--run.directory", two)
    assert losses(two) == pytest.approx(losses(one), rel=RELATIVE)
    told = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert told[-1]["validation_loss"] == pytest.approx(wanted[-1]["validation_loss"], rel=RELATIVE)
    assert told[-1]["loss_highest"] > told[-1]["loss_lowest"]
    if axis == "replica":
        text = research("sample", two, "--cpu-devices", 2, "--prompt", "Permission", "--tokens", 4)
        assert len(text.stdout.rstrip("\n")) >= len("Permission")
