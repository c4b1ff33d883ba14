"""Runs over what they send: seconds of a network by hand, and pictures that show them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from research.configuration import to_json
from research.errors import UserError
from research.experiment import (
    AsynchronousConfig,
    ExchangeConfig,
    Experiment,
    MeshConfig,
    MLPConfig,
    OptimizerConfig,
    RunConfig,
    TableConfig,
)
from research.planning.step import Step
from research.prepared import Prepared
from research.reporting import Curve, exchange_curves, of_one_model, read_run, virtual_seconds
from research.runs import train

RECORDS: list[dict[str, Any]] = [
    # The first step of a run waits for its data and its threads.
    {"step": 1, "loss": 5.0, "tokens_per_second": 10.0, "bytes_sent_total": 0},
    {"step": 10, "loss": 4.0, "tokens_per_second": 2000.0, "bytes_sent_total": 1e9},
    {"step": 20, "loss": 3.0, "tokens_per_second": 4000.0, "bytes_sent_total": 2e9},
]
MESSAGES = (0, 14, 28)
CURVE = Curve(
    "a run",
    "tokens",
    1000,
    [r | {"messages_sent_total": m} for r, m in zip(RECORDS, MESSAGES, strict=True)],
)
# 1,000 tokens a step: 10 steps of 0.5 s, then 10 of 0.25 s.
COMPUTING = [0.5, 5.0, 7.5]


def test_seconds_are_those_of_computing_bytes_and_messages() -> None:
    assert virtual_seconds(CURVE, bandwidth=1e30) == pytest.approx(COMPUTING)
    assert virtual_seconds(CURVE, 1e9) == pytest.approx([0.5, 5 + 8, 7.5 + 16])
    assert virtual_seconds(CURVE, 1e9, 0.5) == pytest.approx([0.5, 5 + 8 + 7, 7.5 + 16 + 14])
    assert virtual_seconds(CURVE, 1e11) == pytest.approx([0.5, 5.08, 7.66])


def test_replicas_that_took_turns_would_compute_at_once() -> None:
    alone = CURVE._replace(turns=5)
    assert virtual_seconds(alone, 1e9) == pytest.approx([0.1, 1 + 8, 1.5 + 16])


def test_one_record_is_all_that_is_known_of_its_speed() -> None:
    assert virtual_seconds(CURVE._replace(records=CURVE.records[:1]), 1e9) == [100.0]


def test_a_run_in_virtual_time_has_its_own_seconds() -> None:
    records = [
        {"step": 1, "virtual_seconds": 3.0, "bytes_sent_total": 1e9},
        {"step": 2, "virtual_seconds": 4.0, "bytes_sent_total": 2e9},
    ]
    assert virtual_seconds(Curve("async", "tokens", None, records), 1e9) == [11.0, 20.0]


@pytest.mark.parametrize(
    ("change", "network", "sentence"),
    [
        ({}, (0.0, 0.0), "a bandwidth of 0 bit/s"),
        ({}, (1e9, -1.0), "a latency of -1 s"),
        ({"per_step": None}, (1e9,), "how many tokens a step of a run has is not known"),
        ({"records": [{"step": 1, "bytes_sent_total": 0}]}, (1e9,), "no tokens_per_second"),
        ({"records": RECORDS}, (1e9, 0.1), "a run has no messages_sent_total at step 1"),
        (
            {"records": [{"step": 1, "loss": 1.0, "tokens_per_second": 1.0}]},
            (1e9,),
            "a run has no bytes_sent_total at step 1: use --exchange.rule every_step",
        ),
    ],
)
def test_what_is_not_known_is_named(
    change: dict[str, Any], network: tuple[float, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        virtual_seconds(CURVE._replace(**change), *network)


@pytest.mark.parametrize(
    ("backend", "mesh", "replicas", "turns"),
    [
        ("gpu", {"replica": 4}, 4, 1),
        ("gpu", {"replica": 4}, 12, 3),
        ("cpu", {"replica": 4, "data": 2}, 4, 8),  # on the same cores
        ("cpu", {"replica": 4, "fsdp": 2}, 8, 8),
        ("cpu", {}, None, 8),  # a single model, in parts of data
        ("gpu", {}, None, 1),
    ],
)
def test_who_takes_turns(
    backend: str, mesh: dict[str, int], replicas: int | None, turns: int, tmp_path: Path
) -> None:
    files: dict[str, Any] = {
        "config": {
            "data": {"batch": 4},
            "mesh": to_json(MeshConfig(**mesh)),
            "exchange": {"replicas": replicas},
        },
        "environment": {"devices": 8, "backend": backend},
        "data": {"unit": "tokens", "shape": [64]},
    }
    if "replica" in mesh and "data" not in mesh:
        files["environment"]["devices"] = 4 * mesh.get("fsdp", 1)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(RECORDS[0]))
    assert read_run(tmp_path).turns == turns


def test_a_network_is_not_counted_twice(tmp_path: Path) -> None:
    config = Experiment(asynchronous=AsynchronousConfig("plain", bandwidth=1.0)).to_json()
    for name, content in {"config": config, "environment": {}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="have a network in them already"):
        read_run(tmp_path)


EXPERIMENT = Experiment(
    model=MLPConfig(widths=(8,)),
    data=TableConfig(batch=32),
    optimizer=OptimizerConfig(schedule="constant"),
    mesh=MeshConfig(data=8),
)
# 30 features, 8 units, 2 classes in float32, of which a ring of 8 sends 2 · 7/8.
RING = 4 * (30 * 8 + 8 + 8 * 2 + 2) * 2 * 7 / 8


def test_a_single_model_sends_its_gradients_by_theory() -> None:
    learner: Any = Prepared(EXPERIMENT).learner
    step = Step.of(learner, EXPERIMENT.model, 32, EXPERIMENT.pipeline)
    made = of_one_model(CURVE._replace(records=RECORDS), step).records
    assert [record["bytes_sent_total"] for record in made] == [RING, 10 * RING, 20 * RING]
    assert [record["messages_sent_total"] for record in made] == [14, 140, 280]
    assert RECORDS[1]["bytes_sent_total"] == 1e9  # and what was given is as it was


def test_a_picture_of_runs(tmp_path: Path) -> None:
    folders = []
    for rule, period in (("every_step", 1), ("local_sgd", 3)):
        folder = tmp_path / rule
        changed = replace(
            EXPERIMENT,
            mesh=MeshConfig(replica=8),
            exchange=ExchangeConfig(rule, period=period),  # type: ignore[arg-type]
            run=RunConfig(str(folder), steps=6, log_every=1, tensorboard=False),
        )
        folders.append(train(changed))
    file = tmp_path / "made" / "runs.svg"
    picture = exchange_curves(folders, latency=1e-4, path=file)
    assert [axes.get_xlabel() for axes in picture.axes] == [
        "step",
        "bytes sent",
        "seconds at 1 Gbit/s, 100 µs",
        "seconds at 10 Gbit/s, 100 µs",
        "seconds at 100 Gbit/s, 100 µs",
    ]
    every, local = ([axes.lines[n].get_xdata() for axes in picture.axes] for n in (0, 1))
    assert list(every[0]) == list(local[0]) == [1, 2, 3, 4, 5, 6]
    assert list(every[1]) == [RING * step for step in range(1, 7)]
    assert list(local[1]) == [RING] * 3 + [2 * RING]  # nothing yet in steps 1 and 2
    slow, fast = every[2][-1], every[4][-1]
    assert slow - fast == pytest.approx(8 * 6 * RING * (1 / 1e9 - 1 / 1e11), rel=1e-3)
    assert fast > 6 * 14 * 1e-4
    assert file.read_text().startswith("<?xml")


def test_a_picture_of_one_metric_over_steps() -> None:
    picture = exchange_curves([CURVE], "loss", ["steps"])
    (axes,) = picture.axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 5.0], [10, 4.0], [20, 3.0]]
    assert axes.get_ylabel() == "loss (nats a token)"
    with pytest.raises(UserError, match="a run has no consensus_distance"):
        exchange_curves([CURVE], "consensus_distance")
    with pytest.raises(UserError, match="at least one run"):
        exchange_curves([])
