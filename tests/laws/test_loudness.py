"""Law 6: what goes wrong ends in one sentence that says what to change, and nothing is lost.

All through the real command. Every sentence is checked for the numbers and names that a reader
needs to act on it, not word for word.
"""

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from research.data import Batches, TextConfig

Mistake = Callable[..., str]

PRIVATE = ("--privacy.unit", "example")
CLIENTS = (
    *("--privacy.unit", "client", "--federated.rule", "fedavg"),
    *("--federated.weighting", "uniform", "--federated.sampling", "poisson"),
)
LICENSE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders that nobody named come to lie in a folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(trained_folder: Path, config: Path, research: Any, tmp_path: Path) -> Path:
    """A copy of the folder of a run of 12 steps, with checkpoints at 9 and 12."""
    if not trained_folder.exists():
        research("train", config, "--cpu-devices", 8, "--run.directory", trained_folder)
    copy = tmp_path / "run"
    shutil.copytree(trained_folder, copy)
    return copy


def rewritten(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    path = config.with_name("changed.py")
    path.write_text(text.replace(old, new))
    return path


def checkpoints(folder: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()
    )


# Configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--run.stepz", "3"], "unknown option --run.stepz: did you mean `--run.steps`?"),
        (["--run.learning-rate", "1"], "did you mean `--optimizer.learning-rate`?"),
        (["--data.batsh=4"], "unknown option --data.batsh: did you mean `--data.batch`?"),
        (["--run.steps", "ten"], "ten"),
        (["--data.vocabulary", "bites"], "byte"),
        (["--run.steps", "-1"], "--run.steps -1 must be 0 or more"),
        (["--run.log-every", "0"], "--run.log-every 0 must be 1 or more"),
        (["--optimizer.microbatches", "3"], "batch 8 does not divide into 3 microbatches: use"),
        (["--optimizer.name", "adamww"], "optax has no optimizer `adamww`: did you mean adamw"),
        (["--model.heads", "5"], "width 32 does not divide into 5 heads: use a width such as 35"),
        (["--model.dropout", "1.5"], "dropout 1.5"),
        (["--mesh.data", "3", "--mesh.tensor", "5"], "data 3 × tensor 5 = 15 devices, but 8 are"),
        (["--mesh.tensor", "3"], "tensor 3 = 3 does not divide the 8 devices"),
        (["--mesh.data", "-1", "--mesh.fsdp", "-1"], "data and fsdp are both -1"),
        (["--mesh.data", "0"], "--mesh.data 0: a mesh axis has at least 1 device"),
        (["--mesh.tensor", "8"], "heads 4 does not divide over tensor = 8: use heads 8, or a mesh"),
        (
            ["--mesh.context", "8", "--data.context", "20"],
            "context 8 × 2 chunks = 16 does not divide",
        ),
        (["--mesh.context", "8", "--model.attention", "cudnn"], "cudnn attends to whole sequences"),
        (["--data.batch", "12"], "batch 12 does not divide over data = 8: use batch 8 or 16"),
        (["--mesh.replica", "4"], "nothing says what they exchange: use --exchange.rule diloco"),
        (["--exchange.rule", "dilocoo"], "diloco"),
        (["--exchange.rule", "diloco", "--exchange.period", "0"], "--exchange.period 0 must be 1"),
        (
            ["--mesh.replica", "4", "--exchange.rule", "diloco", "--exchange.replicas", "6"],
            "6 replicas do not divide over --mesh.replica 4: use --exchange.replicas 4 or 8",
        ),
        (
            ["--mesh.replica", "8", "--exchange.rule", "easgd", "--exchange.replicas", "16"],
            "batch 8 does not divide over replicas a device × replica = 16: use --data.batch 16",
        ),
        (["--asynchronous.workers", "0"], "--asynchronous.workers 0 must be 1 or more"),
        (["--asynchronous.seconds", "inf"], "--asynchronous.seconds inf must be more than 0, and"),
        (["--asynchronous.compensation", "-1"], "--asynchronous.compensation -1.0 must be 0 or"),
        (["--asynchronous.slow-factor", "0.5"], "--asynchronous.slow-factor 0.5 must be 1 or more"),
        (["--asynchronous.share", "0"], "--asynchronous.share 0.0 must be more than 0, at most 1"),
        (
            ["--asynchronous.rule", "diloco", "--asynchronous.quorum", "5"],
            "--asynchronous.quorum 5 must be 1 to 4, or None",
        ),
        (["--asynchronous.grace", "-1"], "--asynchronous.grace -1.0 must be 0 or more, and finite"),
        (["--asynchronous.maximum-staleness", "-1"], "--asynchronous.maximum-staleness -1 must be"),
        (["--asynchronous.alpha", "1"], "--asynchronous.alpha 1.0 must be more than 0, and below"),
        (
            ["--asynchronous.durations", "uniform", "--asynchronous.spread", "2"],
            "--asynchronous.spread 2.0 must be 0 or more, at most 1 for uniform durations",
        ),
        (
            ["--asynchronous.rule", "backup_workers", "--asynchronous.backup", "4"],
            "--asynchronous.backup 4 of 4 workers leaves none to wait for, or is negative: use 0",
        ),
        (
            ["--asynchronous.rule", "backup_workers", "--asynchronous.workers", "3"],
            "batch 8 does not divide over 3 workers: use --data.batch 6 or 9",
        ),
        (
            ["--asynchronous.rule", "plain", "--asynchronous.workers", "6", "--mesh.replica", "4"],
            "6 workers do not divide over --mesh.replica 4: use --asynchronous.workers 4 or 8",
        ),
        (
            ["--asynchronous.rule", "plain", "--exchange.rule", "diloco"],
            "--asynchronous.rule plain are 2 ways to learn together: set all but one of them",
        ),
        (
            ["--federated.rule", "fedavg", "--federated.minimum", "11"],
            "11 clients cannot answer of a cohort of 10: use --federated.minimum 10 or less",
        ),
        (
            ["--ensemble.rule", "deep", "--ensemble.members", "6", "--mesh.replica", "4"],
            "6 members do not divide over --mesh.replica 4: use --ensemble.members 4 or 8",
        ),
        (
            ["--ensemble.rule", "deep", "--ensemble.members", "3", "--data.batch", "12"],
            "a member's batch 12 does not divide over data = 8: use --data.batch 8 or 16",
        ),
        (
            ["--ensemble.members", "2", "--ensemble.learning-rates", "0.1", "0.2", "0.3"],
            "--ensemble.learning-rates has 3 values, and there are 2 members: give one a member",
        ),
        (
            [
                *("--mesh.replica", "8", "--exchange.rule", "every_step"),
                *("--exchange.robust", "krum", "--exchange.byzantine", "3"),
            ],
            "and 8 replicas are fewer than the 9 that f = 3 asks for: use --exchange.byzantine 2",
        ),
        (
            [
                *("--federated.rule", "fedavg", "--federated.weighting", "uniform"),
                *("--federated.aggregation.secure", "True", "--federated.aggregation.clip", "1"),
                *("--federated.aggregation.rule", "krum"),
            ],
            "krum sees single updates, and a secure sum of all shows nobody more than that: use "
            "--federated.aggregation.groups",
        ),
        (["--attack.name", "alie"], "alie is by clients or replicas, and there are none: use"),
        (["--privacy.canaries", "9"], "a batch of 8 may consist of canaries that were left out"),
        (
            ["--privacy.canaries", "9", "--exchange.rule", "diloco", "--mesh.replica", "2"],
            "loss of each example, which --exchange.rule diloco is not: leave one of the two out",
        ),
        (
            [*PRIVATE, "--privacy.mechanism", "dp_ftrl", "--data.batch", "2000"],
            "noise of --privacy.bands 8 is accounted for 8 or more: use --privacy.bands 5, or --da",
        ),
        (
            [*PRIVATE, "--privacy.mechanism", "dp_ftrl", "--privacy.quantile", "0.5"],
            "that of --privacy.mechanism dp_ftrl is not: use --privacy.quantile None",
        ),
        ([*CLIENTS, "--privacy.mechanism", "dp_ftrl"], "is for examples, and clients are drawn"),
        ([*PRIVATE, "--privacy.epsilon", "0"], "--privacy.epsilon 0.0 must be more than 0, and fi"),
        ([*PRIVATE, "--privacy.noise-multiplier", "0"], "without noise nothing is private"),
        ([*PRIVATE, "--privacy.clip", "inf"], "noise hides nobody whose part has no bound"),
        ([*PRIVATE, "--privacy.delta", "0.01"], "0.01 is not below 1 / 10,206 examples"),
        (
            [*PRIVATE, "--privacy.epsilon", "1e-9", "--privacy.delta", "1e-15"],
            "no noise keeps 12 steps below ε = 1e-09 at δ = 1e-15",
        ),
        ([*PRIVATE, "--data.batch", "16000"], "cannot have 16,000 of 10,206 examples"),
        ([*PRIVATE, "--privacy.method", "ghost"], "is no linear map or convolution"),
        ([*PRIVATE, "--optimizer.microbatches", "2"], "cut a batch of fixed size, and a private"),
        ([*PRIVATE, "--mesh.data", "4", "--mesh.context", "2"], "which --mesh.context 2 cannot"),
        (
            [*PRIVATE, "--mesh.replica", "2", "--exchange.rule", "diloco"],
            "accounted for one model that sees all of a step's examples, which --exchange.rule dil",
        ),
        (
            [*PRIVATE, "--federated.rule", "fedavg"],
            "in --federated.rule fedavg each client has its own: use --privacy.unit client",
        ),
        (["--privacy.unit", "client"], "and --federated.rule none has none, or tells more: use"),
        (
            [*CLIENTS, "--federated.sampling", "uniform"],
            "by a draw of its own, and --federated.sampling is uniform: use --federated.sampling p",
        ),
        (
            [*CLIENTS, "--federated.weighting", "examples"],
            "noise counts clients alike, and --federated.weighting is examples",
        ),
        (
            ["--federated.rule", "scaffold", "--federated.aggregation.momentum", "0.9"],
            "and --federated.rule scaffold by uniform sampling has none for it: use fedsgd, fedavg",
        ),
        (
            [*CLIENTS, "--federated.aggregation.rule", "krum"],
            "krum sees single updates, and after noise there is nothing but their sum",
        ),
        (
            [*CLIENTS, "--federated.rule", "scaffold"],
            "for which scaffold keeps no row: use fedsgd, fedavg",
        ),
        (
            [*CLIENTS, "--federated.minimum", "2"],
            "--federated.minimum 2 would end a run by how many",
        ),
        (["--data.source", "nowhere.txt"], "there is no text at 'nowhere.txt'"),
        (["--data.batch", "16000"], "batch 16000 is more than the 10206 training examples"),
        (["--data.context", "20000"], "training split of"),
        (["--data.context", "20000"], "10222 tokens (10222 of 11358 characters)"),
        (["--data.context", "20000"], "--data.context 20000 needs 20001"),
        (["--model.vocabulary-size", "9"], "--model.vocabulary-size 9 is smaller than the data's"),
    ],
)
def test_a_mistake_on_the_command_line(
    words: list[str], sentence: str, config: Path, tmp_path: Path, mistake: Mistake
) -> None:
    assert sentence in mistake("train", config, "--run.directory", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()  # no folder is left that nothing ran in


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("steps=12", "stepz=12", "line 8: RunConfig has no field `stepz`: did you mean `steps`?"),
        ("steps=12", "steps='12'", "run.steps is '12', but must be a whole number"),
        ("steps=12", "steps=12.0", "run.steps is 12.0, but must be a whole number"),
        ("context=16", "context=None", "data.context is None, but must be a whole number"),
        ('"character"', '"charactr"', "did you mean 'character'?"),
        ("heads=4", "heads=4, activation='relu'", "model.activation is 'relu', but must be 'gelu'"),
        ("1e-3", "1e-3, arguments={'nesterow': 1.0}", "adamw takes no argument `nesterow`"),
        ("experiment =", "experimnt =", "defines no `experiment = Experiment(...)`"),
        ("heads=4", "heads=4 / 0", "line 5: ZeroDivisionError"),
        ("layers=2", "layers=", "line 5: SyntaxError"),
        ("import *", "import Nothing", "line 2: ImportError"),
    ],
)
def test_a_mistake_in_a_config_file(
    old: str, new: str, sentence: str, config: Path, mistake: Mistake
) -> None:
    complaint = mistake("train", rewritten(config, old, new))
    assert sentence in complaint


def test_a_config_that_is_not_there_names_the_nearest(config: Path, mistake: Mistake) -> None:
    complaint = mistake("train", config.with_name("tony.py"))
    assert "there is no config file" in complaint and "did you mean `tiny`?" in complaint


def test_microbatches_that_the_mesh_cannot_split_are_named(
    config: Path, mistake: Mistake, tmp_path: Path
) -> None:
    complaint = mistake("train", config, "--optimizer.microbatches", 2)
    assert "batch 8 / 2 microbatches = 4" in complaint
    assert "data = 8" in complaint and "--data.batch 16" in complaint


def test_an_unknown_command_names_the_nearest(mistake: Mistake) -> None:
    assert "there is no command `trane`: did you mean `train`?" in mistake("trane", "x.py")


# Data -----------------------------------------------------------------------------------------


def test_a_corrupt_data_file_names_both_digests(
    config: Path, tmp_path: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEARCH_DATA", str(tmp_path / "data"))
    path = tmp_path / "data" / "tinyshakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text("First Citizen: this is another text\n")
    complaint = mistake("train", config, "--data.source", "tiny_shakespeare")
    assert str(path) in complaint
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in complaint
    assert "expected 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed" in complaint


def test_a_torn_download_is_named(
    config: Path, tmp_path: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEARCH_DATA", str(tmp_path / "data"))
    path = tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(bytes(10_000))[:-20])
    changed = rewritten(
        rewritten(config, "TransformerConfig(layers=2, width=32, heads=4)", "LinearConfig()"),
        f'TextConfig(source={str(LICENSE)!r}, vocabulary="character", context=16, batch=8)',
        "ImagesConfig(name='mnist', batch=8)",
    )
    complaint = mistake("train", changed)
    assert f"{path} is not a whole gz file" in complaint


def test_an_empty_text_is_named(config: Path, tmp_path: Path, mistake: Mistake) -> None:
    (tmp_path / "empty.txt").touch()
    complaint = mistake("train", config, "--data.source", tmp_path / "empty.txt")
    assert "empty.txt" in complaint and "0 tokens" in complaint and "17" in complaint


def test_data_that_changed_since_the_run_began_is_refused(
    config: Path, tmp_path: Path, research: Any, mistake: Mistake, trained: Path
) -> None:
    recorded = json.loads((trained / "data.json").read_text())
    recorded["digest"] = "0" * 64
    (trained / "data.json").write_text(json.dumps(recorded))
    complaint = mistake("resume", trained, "--run.steps", 15)
    assert "changed since" in complaint and "was 000000000000" in complaint
    assert recorded["name"] in complaint


def test_a_model_of_the_wrong_kind_of_data_says_which_fits(config: Path, mistake: Mistake) -> None:
    changed = rewritten(config, "layers=2, width=32, heads=4", "").read_text()
    path = config.with_name("changed.py")
    path.write_text(changed.replace("TransformerConfig()", "LinearConfig()"))
    complaint = mistake("train", path)
    assert "int32" in complaint and "use the transformer for text" in complaint


# Run folders and checkpoints ------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_left_alone(
    config: Path, trained: Path, mistake: Mistake
) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    complaint = mistake("train", config, "--run.directory", trained)
    assert f"{trained} already holds a run" in complaint
    assert f"`research resume {trained}`" in complaint
    assert (trained / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", ["resume", "evaluate", "sample"])
def test_a_run_that_is_not_there_is_named(command: str, tmp_path: Path, mistake: Mistake) -> None:
    assert "nowhere does not exist" in mistake(command, tmp_path / "nowhere")
    assert "no run folder (it has no config.json)" in mistake(command, tmp_path)


def test_a_folder_in_use_names_the_process(
    config: Path, trained: Path, mistake: Mistake, tmp_path: Path
) -> None:
    with open(trained / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("4321")
        lock.flush()
        complaint = mistake("resume", trained)
        assert f"{trained} is in use by process 4321" in complaint


def test_a_run_folder_that_cannot_be_made_is_named(
    config: Path, tmp_path: Path, mistake: Mistake
) -> None:
    (tmp_path / "file").touch()
    complaint = mistake("train", config, "--run.directory", tmp_path / "file" / "run")
    assert "cannot make the run folder" in complaint and "--run.directory" in complaint


def test_a_checkpoint_of_another_model_names_the_first_difference_and_harms_nothing(
    trained: Path, mistake: Mistake, research: Any
) -> None:
    complaint = mistake("resume", trained, "--run.steps", 15, "--model.width", 64)
    assert "checkpoint 12" in complaint and "is of another model" in complaint
    assert "32" in complaint and "64" in complaint
    done = research("resume", trained, "--cpu-devices", 8, "--run.steps", 13)
    assert "restored step 12" in done.stdout


def test_checkpoints_of_which_none_can_be_read_are_named(trained: Path, mistake: Mistake) -> None:
    for path in [path for path in (trained / "checkpoints").rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    damaged = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(AssertionError) as shown:  # two warnings come before the error
        mistake("resume", trained, "--run.steps", 15)
    lines = str(shown.value).splitlines()
    assert sum("warning: checkpoint" in line for line in lines) >= 2
    assert any("none of the checkpoints 12, 9 in" in line for line in lines)
    for path, content in damaged.items():  # what might still be rescued is there
        assert path.name == ".lock" or path.read_bytes() == content


def test_a_damaged_config_of_a_run_is_named(trained: Path, mistake: Mistake) -> None:
    (trained / "config.json").write_text('{"type": "Experi')
    assert "config.json is not valid JSON" in mistake("resume", trained)


# While it runs --------------------------------------------------------------------------------


def test_a_rate_that_is_too_high_leaves_no_checkpoint_of_what_it_made(
    trained: Path, mistake: Mistake, research: Any
) -> None:
    words = ["--run.steps", 18, "--run.checkpoint-every", 1]
    complaint = mistake("resume", trained, *words, "--optimizer.learning-rate", 1e30, status=1)
    assert " is inf at step 13" in complaint or " is nan at step 13" in complaint
    assert "the last good checkpoint is 12" in complaint
    assert f"`research resume {trained}`" in complaint
    source = TextConfig(source=str(LICENSE), vocabulary="character", context=16).load().train
    examples = Batches(source, batch=8, seed=0).indexes(12).tolist()
    assert ", ".join(map(str, examples)) in complaint
    listed = json.loads((trained / "not_finite.json").read_text())
    assert (listed["step"], listed["examples"]) == (13, examples)
    assert checkpoints(trained)[-1] == 12
    assert_finite(trained, 12)
    # And the way out that the sentence names is one.
    research(
        *("resume", trained, "--cpu-devices", 8, "--run.steps", 15),
        *("--optimizer.learning-rate", 1e-3),
    )
    assert_finite(trained, 15)


def assert_finite(folder: Path, step: int) -> None:
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        tree = manager.restore(step, args=ocp.args.StandardRestore())
    import jax

    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all()


def test_a_first_step_that_is_not_finite_says_that_nothing_was_saved(
    config: Path, tmp_path: Path, mistake: Mistake
) -> None:
    folder = tmp_path / "run"
    words = ["--run.directory", folder, "--optimizer.learning-rate", 1e30]
    complaint = mistake("train", config, *words, "--run.checkpoint-every", 1, status=1)
    assert "at step 1" in complaint and "no checkpoint was saved before it" in complaint
    assert checkpoints(folder) == []


def test_a_second_interrupt_ends_at_once(config: Path, tmp_path: Path, research: Any) -> None:
    """In the middle of an evaluation of 100,000 batches, which would take minutes."""
    process = research.start(
        *("train", config, "--cpu-devices", 1, "--run.directory", tmp_path / "run"),
        *("--data.source", "python_stdlib", "--data.vocabulary", "byte", "--data.batch", 1),
        *("--run.steps", 1, "--run.evaluate-batches", 0),
    )
    while "step compiled in" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "SIGINT: stopping after this step\n"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 1
    assert errors.startswith("error: interrupted") and "research resume" in errors
    assert "Traceback" not in errors


def test_an_interrupt_anywhere_has_status_1(tmp_path: Path, research: Any) -> None:
    """In executed source text, too, after which Python would end itself by SIGINT."""
    interrupted = tmp_path / "interrupted.py"
    interrupted.write_text('exec("raise KeyboardInterrupt")\n')
    process = research.start("train", interrupted)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: interrupted")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB; where none can be mounted, the test is skipped."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(path)]
    if os.name != "posix" or shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_names_the_last_good_checkpoint(
    config: Path, small_disk: Path, research: Any, error_of: Any, losses: Any
) -> None:
    """Room for some of the 0.34 MB checkpoints, all of which are to be kept."""
    folder = small_disk / "run"
    words = ["--cpu-devices", 8, "--run.directory", folder, "--run.keep-checkpoints", 10]
    done = research("train", config, *words, "--run.checkpoint-every", 1, status=1)
    sentence = error_of(done)
    good = checkpoints(folder)
    assert good and good[-1] < 12
    assert "no space left on the disk" in sentence and "(0.3 MB needed, 0." in sentence
    assert f"the last good one is of step {good[-1]}" in sentence
    assert f"`research resume {folder}`" in sentence
    for step in good[:-1]:
        shutil.rmtree(folder / "checkpoints" / str(step))
    done = research("resume", folder, "--cpu-devices", 8, "--run.checkpoint-every", 0)
    assert f"restored step {good[-1]}" in done.stdout
    assert len(losses(folder)) == 12
