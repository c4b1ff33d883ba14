"""The command: its help, its order of words, its exit status."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from research.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_help_answers_without_jax() -> None:
    """In under half a second (DESIGN.md): the best of three, since a machine may be busy."""
    code = (
        "import sys; from research.cli import main; status = main(['--help']); "
        "assert not {'jax', 'numpy', 'tyro'} & sys.modules.keys(); sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5
    for command in COMMANDS:
        assert f"research {command}" in done.stdout
    for flag in ("--run.directory", "--run.steps", "--run.log-every", "--mesh.tensor"):
        assert flag in done.stdout


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    assert f"research {command}" in capsys.readouterr().out


def test_the_help_of_a_config_explains_its_fields_with_its_values(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", str(config), "--help"])
    assert not end.value.code
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--run.checkpoint-every" in shown
    assert "Steps from one checkpoint to the next" in shown
    assert "12" in shown  # steps of this config, not of every run
    assert "--model.key-value-heads" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no command was given"),
        (["train"], "give the CONFIG right after `research train`"),
        (["train", "--run.steps", "3", "x.py"], "give the CONFIG right after `research train`"),
        (["resume", "--cpu-devices", "2"], "give the RUN right after `research resume`"),
        (["train", "x.py", "--cpu-devices", "many"], "--cpu-devices"),
        (["train", "x.py", "--cpu-devices", "0"], "--cpu-devices is 0: it must be 1 or more"),
        (["launch", "--", "train", "x.py"], "--processes"),
        (["launch", "--processes", "2"], "nothing to launch"),
        (["export", "run"], "--to"),
    ],
)
def test_a_mistake_in_the_words_is_one_sentence_and_status_2(
    words: list[str], sentence: str, mistake: Callable[..., str]
) -> None:
    assert sentence in mistake(*words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "run"


def test_a_run_from_its_first_word_to_its_sample(
    config: Path, folder: Path, research: Any, metrics: Any
) -> None:
    """train, evaluate and sample, and what a run folder holds (DESIGN.md, section 3)."""
    words = ["--cpu-devices", 2, "--run.directory", folder, "--run.steps", 4]
    more = ["--run.log-every", 2, "--run.sample-tokens", 20, "--run.tensorboard", "True"]
    done = research("train", config, *words, *more, "--mesh.data", 2)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[-1] == f"run folder: {folder}"
    assert "mesh data 2 on 2 cpu devices" in done.stdout

    assert [record["step"] for record in metrics(folder)] == [1, 2, 4]
    for record in metrics(folder):
        assert {"step", "loss", "seconds", "tokens_per_second"} <= record.keys()
    assert "validation_loss" in metrics(folder)[-1]
    assert (folder / "checkpoints" / "4").is_dir()
    assert list((folder / "tensorboard").glob("events*"))
    assert len((folder / "sample.txt").read_text()) == 20

    content = json.loads((folder / "config.json").read_text())
    assert content["run"]["steps"] == 4 and content["run"]["directory"] == str(folder)
    assert content["mesh"]["data"] == 2 and content["model"]["type"] == "TransformerConfig"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["devices"] == 2 and environment["processes"] == 1
    assert environment["seed"] == 0 and "jax" in environment["versions"]
    assert environment["command"][1:3] == ["train", str(config)]

    done = research("evaluate", folder, "--cpu-devices", 1)  # fewer devices than its mesh has
    result = json.loads((folder / "evaluation.json").read_text())
    assert f"loss {result['loss']:.4f}" in done.stdout
    assert result["step"] == 4 and result["split"] == "validation"

    words = ["--prompt", "Lic", "--tokens", 7, "--temperature", 0]
    text = research("sample", folder, *words).stdout
    assert text.startswith("Lic") and len(text) == len("Lic") + 7 + 1
    assert research("sample", folder, *words, "--seed", 9).stdout == text  # temperature 0: no draw


def test_output_that_nobody_reads_is_no_traceback(
    config: Path, tmp_path: Path, research: Any
) -> None:
    process = research.start(
        "train", config, "--cpu-devices", 1, "--run.directory", tmp_path / "run"
    )
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert "Traceback" not in errors
