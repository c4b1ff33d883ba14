"""The loop: what it reads, saves and says, with a step that is no model's."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from research.errors import RunError
from research.parallel.stopping import StopRequest
from research.training.configuration import RunConfig
from research.training.loop import FINITE, Journal, train
from research.training.progress import ProgressReport

Metrics = dict[str, float]


def metrics(loss: float = 1.0) -> Metrics:
    return {"loss": loss, "gradient_norm": 2.0, "parameter_norm": 3.0}


class Saved:
    """Stands for the checkpoints: notes what would be saved."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def save(self, step: int, state: Any) -> None:
        assert state == step  # the state after that step, not of a later one in flight
        self.steps.append(step)

    def latest(self) -> int | None:
        return max(self.steps, default=None)


class Records:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None: ...


class Ran(NamedTuple):
    state: int
    last: int
    records: list[dict[str, Any]]
    saved: list[int]


Run = Callable[..., Ran]


@pytest.fixture
def saved() -> Saved:
    return Saved()


@pytest.fixture
def lines() -> list[str]:
    """What the loop prints."""
    return []


@pytest.fixture
def run(tmp_path: Path, saved: Saved, lines: list[str]) -> Run:
    class Lines(ProgressReport):
        def line(self, text: str) -> None:
            lines.append(text)

    def go(
        config: RunConfig, start: int = 0, bad: dict[int, Metrics] | None = None, stop_at: int = 0
    ) -> Ran:
        records = Records()
        progress = Lines(start, config.steps, "examples", quiet=True)
        with StopRequest() as stop:

            def step(state: int, batch: int) -> tuple[int, Metrics]:
                assert (
                    batch == state
                )  # the batch of step s (from 0) meets the state after s updates
                if state + 1 == stop_at:
                    stop.ask("a test")
                return state + 1, (bad or {}).get(state + 1, metrics(1 / (state + 1)))

            def feed() -> Iterator[int]:
                yield from range(start, 1000)

            state, last = train(
                step,
                start,
                feed(),
                config,
                start=start,
                journal=Journal([records], "examples", 4, start, 10.0),
                evaluate=lambda state: {"loss": float(state)},
                checkpoints=saved,  # type: ignore[arg-type]
                progress=progress,
                stop=stop,
                indexes=lambda step: np.arange(10) + 100 * step,
                folder=tmp_path,
            )
        return Ran(state, last, records.records, saved.steps)

    return go


def test_each_logged_step_is_logged_once_in_order(run: Run) -> None:
    ran = run(RunConfig(steps=23, log_every=5, evaluate_every=10, checkpoint_every=7))
    steps = [record["step"] for record in ran.records]
    assert steps == [1, 5, 10, 15, 20, 23]
    assert [s for s, r in zip(steps, ran.records, strict=True) if "validation_loss" in r] == [
        10,
        20,
        23,
    ]
    for record in ran.records:
        assert record["loss"] == 1 / record["step"]  # its own, not of a step in flight
        assert record["seconds"] >= 10.0  # goes on from those of the run before
        assert record.get("validation_loss", record["step"]) == record["step"]
    assert ran.saved == [7, 14, 21, 23]
    assert (ran.state, ran.last) == (23, 23)


@pytest.mark.parametrize("start", [0, 5])
def test_what_a_run_goes_on_without_is_told_when_it_grows(
    start: int, run: Run, lines: list[str]
) -> None:
    """Also between logged steps, and not again what was told before a resumption."""
    counts = {step: metrics() | {"replicas_dropped": 2.0 + (step >= 8)} for step in range(1, 13)}
    counts |= {step: metrics() | {"replicas_dropped": 0.0} for step in range(1, 3)}
    run(RunConfig(steps=12, log_every=6), start=start, bad=counts)
    told = [f"warning: step {n}: replicas dropped: {c} so far" for n, c in ((3, 2), (8, 3))]
    assert lines == (told if start == 0 else told[1:])


def test_nothing_is_evaluated_or_saved_on_the_way_where_it_says_0(run: Run) -> None:
    ran = run(RunConfig(steps=12, log_every=6, evaluate_every=0, checkpoint_every=0))
    assert ran.saved == [12]
    assert ["validation_loss" in record for record in ran.records] == [False, False, True]


def test_a_resumed_run_logs_what_an_undisturbed_one_logs(run: Run) -> None:
    ran = run(RunConfig(steps=20, log_every=5), start=8)
    assert [record["step"] for record in ran.records] == [10, 15, 20]


def test_a_request_to_stop_saves_that_step(run: Run) -> None:
    ran = run(RunConfig(steps=20, log_every=1, checkpoint_every=0), stop_at=6)
    assert ran.last == ran.state == 6
    assert ran.saved == [6]
    assert ran.records[-1]["step"] == 6


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_what_is_not_finite_is_never_saved_and_names_its_examples(
    name: str, checkpoint_every: int, run: Run, saved: Saved, tmp_path: Path
) -> None:
    bad = {9: metrics() | {name: float("inf")}}
    with pytest.raises(RunError) as error:
        run(RunConfig(steps=20, checkpoint_every=checkpoint_every), bad=bad)
    sentence = str(error.value)
    assert f"{name.replace('_', ' ')} is inf at step 9" in sentence
    assert "examples 800, 801, 802, 803, 804, 805, 806, 807, ..." in sentence
    assert f"the last good checkpoint is {8}" in sentence
    assert f"`research resume {tmp_path}`" in sentence
    assert saved.latest() == 8
    listed = json.loads((tmp_path / "not_finite.json").read_text())
    assert listed["examples"] == list(range(800, 810))
