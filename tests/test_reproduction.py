"""Reproductions: the ledger of a paper's numbers and ours, and the command that writes it."""

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from research.cli import main
from research.errors import UserError
from research.reporting.ledger import (
    BEGIN,
    END,
    Measurement,
    Number,
    Provenance,
    compare,
    figures,
    markdown,
    print_rows,
    read_paper,
    read_rows,
    statement,
    write_rows,
)

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FOLDERS = sorted(path.parent for path in EXPERIMENTS.glob("*/experiment.py"))
FIELDS = ["name", "paper", "ours", "unit", "seeds", "command", "hardware", "versions", "commit"]
HERE = Provenance("research reproduce x", "a machine", {"jax": "0"}, "abc")

# The ledger -------------------------------------------------------------------------------------


def test_a_row_is_the_mean_over_the_seeds_beside_the_papers_number() -> None:
    numbers = [Number("accuracy", 90.0, "%", "table 1")]
    measured = [
        Measurement("accuracy", [88.0, 90.0, 92.0], "%", tolerance=0.5),
        Measurement("bytes", 12, "MiB"),
    ]
    accuracy, sent = compare(numbers, measured, [0, 1, 2], HERE)
    assert (accuracy.paper, accuracy.ours, accuracy.spread) == (90.0, 90.0, 2.0)
    assert accuracy.source == "table 1" and accuracy.seeds == [0, 1, 2] and accuracy.agrees
    assert accuracy.command == "research reproduce x" and accuracy.commit == "abc"
    # Nothing in it is drawn, and the paper has no such number.
    assert (sent.paper, sent.ours, sent.spread, sent.seeds) == (None, 12.0, None, [])
    assert sent.agrees is None


@pytest.mark.parametrize(
    ("ours", "holds", "agrees"),
    [
        (1.25, "equal", True),
        (1.5, "equal", False),
        (0.5, "equal", False),
        (0.5, "at most", True),
        (1.25, "at most", True),
        (1.5, "at most", False),
        (1.5, "at least", True),
        (0.75, "at least", True),
        (0.5, "at least", False),
    ],
)
def test_what_agrees_with_a_paper(ours: float, holds: Any, agrees: bool) -> None:
    [row] = compare(
        [Number("x", 1.0, "s", "figure 2")], [Measurement("x", ours, "s", 0.25, holds)], [0], HERE
    )
    assert row.agrees is agrees
    said = " ".join(statement([row]))
    assert ("Ours differs: x:" in said) is not agrees
    sign = {"equal": "", "at most": "≤ ", "at least": "≥ "}[holds]
    assert f"| x | {sign}1 | {ours:g} | s |" in markdown([row])
    assert f"{int(agrees)} of 1 numbers agree" in said


def test_a_difference_is_said_with_its_numbers_and_its_reason() -> None:
    numbers = [Number("accuracy", 94.25, "%", "table 3")]
    measured = [Measurement("accuracy", [60.0, 62.0], "%", 1.0, because="a hundredth of the data")]
    console = Console(width=200, file=io.StringIO(), record=True)
    print_rows(compare(numbers, measured, [0, 1], HERE), "x", console)
    shown = console.export_text()
    assert re.search(r"accuracy +94.25 +61.0 ± 1.4 +% +2 +differs", shown)
    sentence = "accuracy: 61.0 %, where the paper has 94.25 (table 3; tolerance 1): a hundredth"
    assert sentence in shown


@pytest.mark.parametrize(
    ("measured", "seeds", "mistake"),
    [
        ([Measurement("y", 1, "s")], [0], "number 'x' is not measured"),
        ([Measurement("x", 1, "ms")], [0], "'x' is in 's' in the paper, and ours in 'ms'"),
        ([Measurement("x", 1, "s"), Measurement("x", 2, "s")], [0], "'x' is measured twice"),
        ([Measurement("x", [1, 2], "s")], [0], "'x' has 2 values for 1 seeds"),
        ([Measurement("x", [1, float("nan")], "s")], [0, 1], "'x' is not finite"),
    ],
)
def test_an_experiment_that_does_not_fit_its_paper_is_refused(
    measured: list[Measurement], seeds: list[int], mistake: str
) -> None:
    with pytest.raises(UserError, match=mistake):
        compare([Number("x", 1.0, "s", "table 1")], measured, seeds, HERE)


def test_a_run_that_diverged_is_said_to_have_and_is_in_no_mean() -> None:
    nan = float("nan")
    numbers = [Number("some", 2.0, "%", "table 1"), Number("all", 3.0, "%", "table 1")]
    measured = [
        Measurement("some", [1.0, nan, 3.0], "%", diverged=[1]),
        Measurement("all", [nan] * 3, "%", diverged=[0, 1, 2]),
        Measurement("none", [4.0, 5.0, 6.0], "%"),
    ]
    some, all_, none = rows = compare(numbers, measured, [0, 1, 2], HERE)
    assert (some.ours, some.seeds, some.diverged) == (2.0, [0, 1, 2], [1])
    assert all_.ours is None and all_.diverged == [0, 1, 2] and none.diverged == []
    assert (some.agrees, all_.agrees, none.agrees) == (False, False, None)
    table = markdown(rows)
    assert "| some | 2 | 2.0 ± 1.4, 1 of 3 diverged | % | 3 | differs |" in table
    assert "| all | 3 | 3 of 3 diverged | % | 3 | differs |" in table
    assert "| none |  | 5.0 ± 1.0 | % | 3 | no number to compare |" in table
    assert "0 of 2 numbers agree" in table
    assert "some: 2.0 %, 1 of 3 diverged, where the paper has 2" in table
    assert "all: 3 of 3 diverged, where the paper has 3" in table
    assert table.endswith("Means are over the seeds that did not diverge.")


def test_what_did_not_come_within_the_limit_is_said_and_is_in_no_mean() -> None:
    never = float("inf")
    numbers = [Number("some", 20.0, "rounds", "table 1"), Number("all", 30.0, "rounds", "table 1")]
    measured = [
        Measurement("some", [10.0, never, 30.0], "rounds", limit=50),
        Measurement("all", [never] * 3, "rounds", limit=50),
        Measurement("none", [4.0, 5.0, 6.0], "rounds", limit=50),
    ]
    some, all_, none = rows = compare(numbers, measured, [0, 1, 2], HERE)
    assert (some.ours, some.limit, some.missed) == (20.0, 50, [1])
    assert all_.ours is None and all_.missed == [0, 1, 2] and none.missed == []
    assert (some.agrees, all_.agrees, none.agrees) == (False, False, None)
    table = markdown(rows)
    assert "| some | 20 | 20 ± 14, 1 of 3 not in 50 rounds | rounds | 3 | differs |" in table
    assert "| all | 30 | 3 of 3 not in 50 rounds | rounds | 3 | differs |" in table
    assert "all: 3 of 3 not in 50 rounds, where the paper has 30" in table
    assert table.endswith("Means are over the seeds that got there.")
    with pytest.raises(UserError, match="'some' is not finite"):
        compare([], [Measurement("some", [1.0, never, 3.0], "rounds")], [0, 1, 2], HERE)


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (1023.456, None, "1,023"),
        (4.2, None, "4.2"),
        (4.2109, None, "4.211"),
        (0, None, "0"),
        (61.237, 0.127, "61.24"),
        (61.237, 14.2, "61"),
        (0.000123456, None, "0.0001235"),
        (300, None, "300"),
    ],
)
def test_figures_have_the_digits_they_deserve(value: float, spread: Any, text: str) -> None:
    assert figures(value, spread) == text


def test_rows_survive_their_file(tmp_path: Path) -> None:
    rows = compare([], [Measurement("x", [1, 2], "s")], [3, 4], HERE)
    write_rows(tmp_path / "results.json", rows)
    assert read_rows(tmp_path / "results.json") == rows
    [content] = json.loads((tmp_path / "results.json").read_text())
    assert set(FIELDS) <= content.keys()


# The command ------------------------------------------------------------------------------------

TINY = '''"""A tiny experiment: digits by a linear model."""

from dataclasses import replace

from research.experiment import *
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction


def variants(quick):
    whole = Experiment(
        model=LinearConfig(),
        data=ImagesConfig("digits", batch=16),
        mesh=MeshConfig(replica=-1, data=1),
        run=RunConfig(steps=3 if quick else 6, log_every=1, checkpoint_every=0, tensorboard=False),
    )
    return {
        rule: replace(whole, exchange=ExchangeConfig(rule, period=2, replicas=8))
        for rule in ("every_step", "local_sgd")
    }


def measure(results):
    return [
        Measurement("accuracy", results.test("every_step", "accuracy"), "of 1"),
        Measurement(
            "bytes saved",
            float(
                results.last("every_step", "bytes_sent_total")[0]
                / results.last("local_sgd", "bytes_sent_total")[0]
            ),
            "times",
        ),
    ]


def draw(axes, results):
    draw_curves(axes, results.curves("step", "loss"))


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw)
'''
PAPER = {
    "title": "A paper",
    "authors": "Nobody",
    "year": 2020,
    "url": "https://example.org",
    "numbers": [{"name": "bytes saved", "value": 2, "unit": "times", "source": "table 1"}],
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of experiments that has one, of a second."""
    folder = tmp_path / "experiments" / "tiny_2020"
    folder.mkdir(parents=True)
    (folder / "experiment.py").write_text(TINY)
    (folder / "paper.json").write_text(json.dumps(PAPER))
    (folder / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return folder


def words(tiny: Path, *more: object) -> list[str]:
    directory = tiny.parents[1] / "runs"
    given = ["--experiments", tiny.parent, "--run.directory", directory, *more]
    return ["reproduce", "tiny_2020", *map(str, given)]


def test_the_full_form_writes_rows_figure_and_table(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words(tiny)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"bytes saved +2 +2 +times +agrees", shown)
    assert "1 of 1 numbers agree with the paper's." in shown

    accuracy, saved = read_rows(tiny / "results.json")
    assert saved.ours == 2 and saved.paper == 2 and saved.seeds == []
    assert accuracy.seeds == [0, 1] and accuracy.paper is None and 0 < accuracy.ours < 1
    assert accuracy.command.startswith("research reproduce tiny_2020 --experiments")
    assert "cores" in accuracy.hardware and "jax" in accuracy.versions and accuracy.commit
    assert (tiny / "figure.svg").read_text().startswith("<?xml")
    assert (tiny / "README.md").read_text() == (
        f"before\n{BEGIN}\n{markdown([accuracy, saved])}\n{END}\nafter\n"
    )

    # What is finished is not done again.
    monkeypatch.setattr("research.runs.train", None)
    monkeypatch.setattr("research.trained.evaluate", None)
    assert main(words(tiny)) == 0
    assert read_rows(tiny / "results.json") == [accuracy, saved]


def test_the_quick_form_writes_nothing_into_the_folder(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.iterdir()}
    assert main(words(tiny, "--quick")) == 0
    assert {path: path.stat().st_mtime_ns for path in tiny.iterdir()} == before
    assert "Ours differs: bytes saved: 3 times, where the paper has 2" in capsys.readouterr().out


def test_a_run_that_was_interrupted_is_gone_on_with(
    tiny: Path, research: Any, until: Any, metrics: Any
) -> None:
    """Stopped somewhere in the second of two runs."""
    text = (tiny / "experiment.py").read_text()
    text = text.replace("else 6", "else 60").replace("checkpoint_every=0", "checkpoint_every=5")
    (tiny / "experiment.py").write_text(text)
    asked = words(tiny, "--seeds", 4, "--cpu-devices", 1)
    process = research.start(*asked)
    second = tiny.parents[1] / "runs" / "local_sgd-seed4"
    # One that is being written still has a longer name.
    until(lambda: any(p.name.isdigit() for p in second.glob("checkpoints/*")), process)
    process.terminate()
    said = research.end(process, status=1).stderr
    assert re.search(r"error: stopped at step \d+ of 60 of .*: the same command goes on", said)
    assert "Traceback" not in said
    assert not (tiny / "results.json").exists()
    done = research(*asked)
    assert "restored step" in done.stdout
    assert read_rows(tiny / "results.json")[0].seeds == [4]
    assert [record["step"] for record in metrics(second)] == list(range(1, 61))


def test_a_run_that_diverges_is_a_result_where_the_experiment_says_so(
    tiny: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two variants does, with any seed."""
    file = tiny / "experiment.py"
    high = "OptimizerConfig('sgd', 1e30 if rule == 'local_sgd' else 0.1, clip=None)"
    rows = """lambda results: [
        Measurement(rule, results.test(rule, "accuracy"), "of 1", diverged=results.diverged(rule))
        for rule in ("every_step", "local_sgd")
    ]"""
    text = file.read_text()
    text = text.replace("(whole, exchange", f"(whole, optimizer={high}, exchange")
    file.write_text(text.replace("measure=measure", f"measure={rows}"))
    (tiny / "paper.json").write_text(json.dumps(PAPER | {"numbers": []}))
    assert "lower the learning rate" in mistake(*words(tiny), status=1)
    assert not (tiny / "results.json").exists()

    file.write_text(file.read_text().replace("draw=draw", "draw=draw, may_diverge=True"))
    for _ in range(2):
        assert main(words(tiny)) == 0
        one, local = read_rows(tiny / "results.json")
        assert one.ours is not None and one.diverged == []
        assert local.ours is None and local.diverged == [0, 1]
        assert "2 of 2 diverged" in (tiny / "README.md").read_text()
        monkeypatch.setattr("research.runs.train", None)  # what has diverged is not done again
        monkeypatch.setattr("research.runs.resume", None)


def test_what_takes_hours_is_left_to_accelerators_and_said_to_be(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny / "experiment.py"
    rows = """lambda results: [
        Measurement(rule, [run.last("loss") for run in results.runs.get(rule, ())], "nats")
        for rule in ("every_step", "local_sgd")
    ]"""
    text = file.read_text().replace("measure=measure", f"measure={rows}")
    file.write_text(text.replace("draw=draw", 'draw=draw, for_accelerators=["local_sgd"]'))
    number = {"name": "local_sgd", "value": 1, "unit": "nats", "source": "table 1"}
    (tiny / "paper.json").write_text(json.dumps(PAPER | {"numbers": [number]}))
    assert main(words(tiny)) == 0
    shown = capsys.readouterr().out
    assert "left out, since they take hours without an accelerator: local_sgd" in shown
    assert "[2/2] every_step, seed 1" in shown
    one, local = read_rows(tiny / "results.json")
    assert one.was_run and one.seeds == [0, 1]
    assert not local.was_run and local.agrees is None and local.paper == 1
    readme = (tiny / "README.md").read_text()
    assert "| local_sgd | 1 | not run here | nats |  |  |" in readme
    assert "1 of 2 rows were not run here." in readme


def test_a_run_of_another_experiment_is_not_taken_for_this_one(
    tiny: Path, mistake: Callable[..., str]
) -> None:
    assert main(words(tiny, "--seeds", 0)) == 0
    text = (tiny / "experiment.py").read_text()
    (tiny / "experiment.py").write_text(text.replace("batch=16", "batch=32"))
    said = mistake(*words(tiny, "--seeds", 0))
    assert "every_step-seed0 holds a run of another experiment" in said
    assert "data.batch is 16, and now 32" in said and "--run.directory" in said


def test_a_finished_run_with_noise_is_known_again(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its seed and the noise were found when it began: an experiment that leaves them open is the
    same one, and so is one that gives a noise no float32 can be."""
    text = TINY.replace(
        "mesh=MeshConfig(replica=-1, data=1)", 'privacy=PrivacyConfig("example", delta=1e-4)'
    )
    given = '{"every_step": None, "local_sgd": 1.3}[rule]'
    noisy = f"replace(whole.privacy, noise_multiplier={given})"
    text = text.replace("exchange=ExchangeConfig(rule, period=2, replicas=8)", f"privacy={noisy}")
    text = text.replace("measure=measure", "measure=lambda results: []")
    (tiny / "experiment.py").write_text(text)
    (tiny / "paper.json").write_text(json.dumps(PAPER | {"numbers": []}))
    for _ in range(2):
        assert main(words(tiny, "--seeds", 0)) == 0
    assert capsys.readouterr().out.count("step 6/6") == 2


def test_mistakes_are_one_sentence(tiny: Path, mistake: Callable[..., str]) -> None:
    folder = ["--experiments", tiny.parent]
    said = mistake("reproduce", "tyni_2020", *folder)
    assert "no experiment `tyni_2020`: did you mean `tiny_2020`?" in said
    assert "has tiny_2020" in mistake("reproduce", "zzz", *folder)
    assert "seeds 1 1: give different ones" in mistake(*words(tiny, "--seeds", 1, 1))
    assert "unrecognized arguments: --fast" in mistake(*words(tiny, "--fast"))
    (tiny / "paper.json").write_text(json.dumps(PAPER | {"nombers": []}))
    assert "no field `nombers`: did you mean `numbers`?" in mistake(*words(tiny))
    (tiny / "experiment.py").write_text('"""Nothing."""\n')
    assert "defines no `reproduction = Reproduction(...)`" in mistake(*words(tiny))


def test_without_a_name_the_experiments_are_listed(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--experiments", str(tiny.parent)]) == 0
    assert capsys.readouterr().out == "tiny_2020  A tiny experiment: digits by a linear model.\n"


# Every experiment's folder ------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_holds_the_papers_numbers_and_ours(folder: Path) -> None:
    """As the command wrote them: each number of the paper in a row, README and rows the same."""
    numbers = {number.name: number for number in read_paper(folder / "paper.json")}
    rows = read_rows(folder / "results.json")
    for row in rows:
        number = numbers.pop(row.name, None)
        assert row.paper == (number and number.value) and row.source == (number and number.source)
        assert row.command.startswith(f"research reproduce {folder.name}")
        assert "--quick" not in row.command
        assert row.hardware and row.versions and row.commit
    assert not numbers, "the paper's numbers that no row has"
    assert (folder / "figure.svg").is_file()
    readme = (folder / "README.md").read_text()
    assert f"{BEGIN}\n{markdown(rows)}\n{END}" in readme
    assert "differs" in readme, "a README says what differs in the set-up"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_quick_form_of_every_experiment_runs(folder: Path, research: Any) -> None:
    text = (folder / "experiment.py").read_text()
    needs_data = "ImagesConfig" in text or "shakespeare_by_role" in text
    if needs_data and "RESEARCH_DATA" not in os.environ:
        pytest.skip("RESEARCH_DATA is not set")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = research("reproduce", folder.name, "--quick")
    assert "quick form: nothing was written" in done.stdout
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    for number in read_paper(folder / "paper.json"):
        assert number.name in done.stdout
