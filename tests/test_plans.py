"""Plan `auto`: the fastest by a clock, the same for all that is computed."""

import itertools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from research.experiment import (
    ExchangeConfig,
    Experiment,
    FederatedConfig,
    MeshConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
    TableConfig,
)
from research.inspection import inspect_experiment
from research.parallel.launch import launch
from research.plans import ROUNDS, settled, turns
from research.prepared import Prepared
from research.runs import resume, train

ROOT = Path(__file__).parents[1]


def experiment(plan: Any, replicas: int = 16) -> Experiment:
    return Experiment(
        model=MLPConfig(widths=(8,)),
        data=TableConfig(batch=32),
        optimizer=OptimizerConfig(schedule="constant"),
        mesh=MeshConfig(replica=8),
        exchange=ExchangeConfig("local_sgd", period=3, replicas=replicas, plan=plan),
    )


def clock_of(durations: Iterable[float]) -> Callable[[], float]:
    """That looks at steps of such `durations`, one after another."""
    moments = itertools.chain.from_iterable((0.0, seconds) for seconds in durations)
    return lambda: next(moments)


def told(scan: list[float], vmap: list[float]) -> tuple[Prepared, list[str]]:
    """What is taken where the steps last so long; the first of either is not to count."""
    lines: list[str] = []
    durations = [5.0, 7.0, *itertools.chain.from_iterable(zip(scan, vmap, strict=True))]
    return settled(Prepared(experiment("auto")), lines.append, clock_of(durations)), lines


def test_the_plan_with_the_lower_median_is_taken() -> None:
    slow, fast = [0.03] * ROUNDS, [0.02] * ROUNDS
    for scan, vmap, plan in ((slow, fast, "vmap"), (fast, slow, "scan"), (fast, fast, "scan")):
        taken, (line,) = told(scan, vmap)
        assert taken.experiment.exchange.plan == plan
        assert f"{1e3 * scan[0]:.1f} ms by scan, {1e3 * vmap[0]:.1f} ms by vmap" in line
        assert line.endswith(f"--exchange.plan {plan} is taken")
    disturbed = [*fast[:-1], 9.0]  # by what else the machine does
    assert told(disturbed, slow)[0].experiment.exchange.plan == "scan"


def test_it_computes_by_the_plan_that_was_taken() -> None:
    """Side by side there is no loop over replicas."""
    for scan, vmap, loops in ((3.0, 2.0, False), (2.0, 3.0, True)):
        step: Any = told([scan] * ROUNDS, [vmap] * ROUNDS)[0].compile()
        assert (" while(" in step.as_text()) == loops


def test_what_does_not_fit_side_by_side_is_computed_one_after_another() -> None:
    def full() -> float:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    lines: list[str] = []
    assert (
        settled(Prepared(experiment("auto")), lines.append, full).experiment.exchange.plan == "scan"
    )
    assert "more memory than there is" in lines[0]


def rounds(cohort: int = 96, **words: Any) -> Experiment:
    return Experiment(
        model=MLPConfig(widths=(8,)),
        data=TableConfig(batch=8),
        optimizer=OptimizerConfig(name="sgd", schedule="constant"),
        mesh=MeshConfig(replica=8, data=1),
        federated=FederatedConfig("fedavg", cohort=cohort, plan="auto", **words),
        partition=PartitionConfig("iid", clients=96),
    )


@pytest.mark.parametrize(
    ("times", "plan", "width"),
    [((1, 2, 3), "scan", None), ((2, 1, 3), "chunk", 6), ((3, 2, 1), "vmap", None)],
)
def test_the_fastest_of_three_plans_for_clients_is_taken(
    times: tuple[int, ...], plan: str, width: int | None
) -> None:
    """Of the 12 clients of a device 6 are a group: all would be another plan."""
    lines: list[str] = []
    taken = settled(Prepared(rounds()), lines.append, clock_of(itertools.cycle(times)))
    chosen = taken.experiment.federated
    assert (chosen.plan, chosen.width) == (plan, width)
    assert f"{1e3 * times[1]:.1f} ms by chunk --federated.width 6" in lines[0]
    words = f"chunk --federated.width {width}" if width else plan
    assert lines[0].endswith(f"--federated.plan {words} is taken")


def test_long_rounds_are_timed_fewer_times() -> None:
    assert [turns(seconds) for seconds in (0.0, 10.0, 25.0, 1000.0)] == [ROUNDS, ROUNDS, 2, 1]


def test_nothing_is_measured_without_a_choice() -> None:
    def broken() -> float:
        raise AssertionError("was asked for the time")

    for plan, replicas in (("auto", 8), ("vmap", 16)):  # one replica a device; a plan
        before = Prepared(experiment(plan, replicas))
        assert settled(before, print, broken) is before
    alone = Prepared(rounds(cohort=8))  # one client a device
    assert settled(alone, print, broken) is alone


def test_nothing_is_measured_to_inspect() -> None:
    assert "this is the step by scan" in inspect_experiment(experiment("auto")).warnings[0]
    assert not inspect_experiment(experiment("vmap")).warnings


def test_a_run_keeps_the_plan_and_is_as_if_it_had_been_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], losses: Callable[[Path], dict[int, float]]
) -> None:
    measured, given = tmp_path / "measured", tmp_path / "given"

    def lasting(steps: int, folder: Path, plan: Any) -> Experiment:
        run = RunConfig(str(folder), steps=steps, log_every=1, tensorboard=False)
        return replace(experiment(plan), run=run)

    train(lasting(4, measured, "auto"))
    plan = json.loads((measured / "config.json").read_text())["exchange"]["plan"]
    assert f"--exchange.plan {plan} is taken" in capsys.readouterr().out
    resume(measured, lambda before: replace(before, run=replace(before.run, steps=8)))
    assert "is taken" not in capsys.readouterr().out
    train(lasting(8, given, plan))
    assert losses(measured) == losses(given)


AT_ODDS = """
import itertools, pathlib, sys
from research.parallel import processes

processes.initialize(cpu_devices=1)
from research.experiment import *
from research.plans import settled
from research.prepared import Prepared

index = processes.index()
experiment = Experiment(
    model=MLPConfig(widths=(8,)),
    data=TableConfig(batch=8),
    mesh=MeshConfig(replica=2),
    exchange=ExchangeConfig("local_sgd", replicas=4, plan="auto"),
)
durations = itertools.cycle([2.0, 1.0] if index == 0 else [1.0, 2.0])  # scan, vmap
moments = itertools.chain.from_iterable((0.0, seconds) for seconds in durations)
taken = settled(Prepared(experiment), print, lambda: next(moments))
(pathlib.Path(sys.argv[1]) / f"plan-{index}").write_text(taken.experiment.exchange.plan)
"""


@pytest.mark.distributed
def test_processes_that_measure_differently_take_the_plan_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "script.py").write_text(AT_ODDS)
    program = [sys.executable, str(tmp_path / "script.py")]
    assert launch(2, [str(tmp_path)], program=program) == 0
    assert [(tmp_path / f"plan-{index}").read_text() for index in (0, 1)] == ["vmap", "vmap"]
