"""Law 2: N steps = k steps, kill -9, resume, N-k steps: bit for bit on the same mesh."""

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from research.data import Batches, TextConfig
from research.parallel.layout import batch_sharding, place, rows_of_this_process
from research.parallel.mesh import MeshConfig
from research.training.checkpoints import Checkpoints

STEPS = 24
# Dropout is on: its draws, too, have to be those of the step. And a schedule: so has the rate.
RUN = [
    *("--cpu-devices", 2, "--mesh.data", 1, "--mesh.fsdp", 2),
    *("--model.dropout", 0.1, "--optimizer.schedule", "cosine", "--optimizer.warmup-steps", 5),
    *("--run.steps", STEPS, "--run.checkpoint-every", 2, "--run.keep-checkpoints", 3),
]
# Another mesh changes the order of float32 sums: tolerance and reason are those of test_layout.py.
RELATIVE = 2e-5

Losses = Callable[[Path], dict[int, float]]


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, by name."""
    one = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(
        (folder / "checkpoints").absolute(), item_handlers=handler
    ) as manager:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
            manager.item_metadata(step).tree,
        )
        tree = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def complete(folder: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(
        int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()
    )


def assert_same_checkpoint(folder: Path, other: Path, step: int) -> None:
    here, there = arrays(folder, step), arrays(other, step)
    assert here.keys() == there.keys() and len(here) > 20
    for name, array in here.items():
        assert array.dtype == there[name].dtype
        np.testing.assert_array_equal(array, there[name], err_msg=name)


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def undisturbed(undisturbed_folder: Path, config: Path, research: Any) -> Path:
    """The folder of a run that nothing happened to."""
    if not undisturbed_folder.exists():
        research("train", config, *RUN, "--run.directory", undisturbed_folder)
    return undisturbed_folder


def test_kills_at_random_moments_change_no_bit(
    undisturbed: Path,
    config: Path,
    tmp_path: Path,
    research: Any,
    until: Any,
    metrics: Any,
    losses: Losses,
) -> None:
    """Two kills a run, each after some step was logged, and some milliseconds."""
    generator = random.Random(0)
    folder = tmp_path / "run"
    words: list[object] = ["train", config, *RUN, "--run.directory", folder]
    begin = 1
    for end in (STEPS // 2, STEPS - 2):
        process = research.start(*words)
        step = generator.randint(begin, end)
        until(lambda step=step: [r for r in metrics(folder) if r["step"] >= step], process)
        time.sleep(generator.random() * 0.05)
        process.kill()
        process.wait()
        assert (folder / "config.json").exists()
        # Where it goes on is the newest complete checkpoint, and what it logs follows that.
        begin = max([0, *complete(folder)]) + 1
        words = ["resume", folder, "--cpu-devices", 2]
    done = research(*words)
    assert (f"restored step {begin - 1}" if begin > 1 else "beginning again") in done.stdout

    assert losses(folder) == losses(undisturbed)
    assert_same_checkpoint(folder, undisturbed, STEPS)
    last, wanted = metrics(folder)[-1], metrics(undisturbed)[-1]
    assert last["validation_loss"] == wanted["validation_loss"]
    assert last["learning_rate"] == wanted["learning_rate"]


def test_a_kill_in_the_middle_of_a_save_changes_no_bit(
    undisturbed: Path, config: Path, tmp_path: Path, research: Any, until: Any, losses: Losses
) -> None:
    """Killed as soon as the unfinished folder of the third checkpoint is seen."""
    folder = tmp_path / "run"

    def unfinished() -> list[Path]:
        found = [path for path in (folder / "checkpoints").glob("*") if "tmp" in path.name]
        return [path for path in found if path.name.startswith("6")]

    process = research.start("train", config, *RUN, "--run.directory", folder)
    until(unfinished, process)
    process.kill()
    process.wait()
    assert 6 not in complete(folder), "the kill came too late to test anything"
    done = research("resume", folder, "--cpu-devices", 2)
    assert f"restored step {4}" in done.stdout
    assert losses(folder) == losses(undisturbed)
    assert_same_checkpoint(folder, undisturbed, STEPS)
    assert complete(folder) == [STEPS - 4, STEPS - 2, STEPS]
    assert not unfinished()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    undisturbed: Path, tmp_path: Path, research: Any, losses: Losses
) -> None:
    """The newest lost its files, the one before them half: the third is taken, and they are made
    anew."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    [third, second, newest] = [folder / "checkpoints" / str(s) for s in complete(folder)]
    for path in sorted(newest.rglob("d/*")):
        path.unlink()
    for path in [path for path in second.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.copytree(third, folder / "checkpoints" / f"{STEPS + 2}.orbax-checkpoint-tmp")
    done = research("resume", folder, "--cpu-devices", 2)
    assert f"restored step {third.name}" in done.stdout
    # Anywhere in a line: what XLA's threads print meanwhile may stand before it.
    warned = re.findall(r"warning: checkpoint (\d+) .*taking the one before", done.stderr)
    assert warned == [newest.name, second.name], done.stderr
    assert losses(folder) == losses(undisturbed)
    assert_same_checkpoint(folder, undisturbed, STEPS)
    assert complete(folder) == complete(undisturbed)


def test_another_mesh_goes_on_within_the_layout_tolerance(
    undisturbed: Path, tmp_path: Path, research: Any, losses: Losses
) -> None:
    folder = half_way(undisturbed, tmp_path)
    mesh = ["--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2]
    research("resume", folder, "--cpu-devices", 8, *mesh)
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=RELATIVE)
    changed = json.loads((folder / "config.json").read_text())
    assert changed["mesh"]["tensor"] == 2  # the next resume goes on so
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["devices"], environment["earlier"][0]["devices"]) == (8, 2)


PIPELINE = [
    *("--cpu-devices", 4, "--mesh.stage", 2, "--mesh.data", 2, "--optimizer.microbatches", 4),
    *("--data.batch", 16, "--model.layers", 4, "--model.dropout", 0.1),
    *("--run.steps", 8, "--run.checkpoint-every", 2, "--run.keep-checkpoints", 3),
]


def test_a_pipeline_is_resumed_bit_for_bit_and_by_other_schedules_and_meshes(
    config: Path, tmp_path: Path, research: Any, resumed: Any, losses: Losses
) -> None:
    """In two rounds, where layers are stored as [rounds, layers a round, ...]."""
    rounds = ["--pipeline.schedule", "interleaved"]
    folder, whole = resumed(config, *PIPELINE, *rounds)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)

    one_by_one = ["--pipeline.schedule", "1f1b"]
    more = ["--run.steps", 10]
    research("resume", whole, "--cpu-devices", 4, *more)
    for name, words in {
        "schedule": ["--cpu-devices", 4, *one_by_one],
        "mesh": ["--cpu-devices", 2, "--mesh.stage", 1],
    }.items():
        other = tmp_path / name
        shutil.copytree(folder, other)
        research("resume", other, *words, *more)
        assert losses(other) == pytest.approx(losses(whole), rel=RELATIVE)
    # And back into rounds.
    research(
        "resume", tmp_path / "mesh", *("--cpu-devices", 4, "--mesh.stage", 2), "--run.steps", 12
    )
    research("resume", whole, "--cpu-devices", 4, "--run.steps", 12)
    assert losses(tmp_path / "mesh") == pytest.approx(losses(whole), rel=RELATIVE)


REPLICAS = [
    *("--cpu-devices", 4, "--mesh.replica", 2, "--mesh.data", 1, "--mesh.fsdp", 2),
    *("--exchange.rule", "diloco", "--exchange.replicas", 4, "--exchange.period", 3),
    *("--model.dropout", 0.1, "--run.steps", 8, "--run.checkpoint-every", 2),
    *("--run.keep-checkpoints", 3),
]


def test_replicas_that_differ_are_resumed_bit_for_bit_and_on_other_meshes(
    config: Path, tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    """Between two exchanges, where each has parameters of its own."""
    folder, whole = resumed(config, *REPLICAS)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    sent, total = ([r[n] for r in metrics(folder)] for n in ("bytes_sent", "bytes_sent_total"))
    assert [bytes_of > 0 for bytes_of in sent] == [step in (3, 6) for step in range(1, 9)]
    assert total == [sum(sent[:step]) for step in range(1, 9)]
    apart = [record["consensus_distance"] > 0 for record in metrics(folder)]
    assert apart == [step not in (3, 6) for step in range(1, 9)]

    # The same four on one device, and one to a device.
    research("resume", whole, "--cpu-devices", 4, "--run.steps", 10)
    for devices in (1, 4):
        other = tmp_path / str(devices)
        shutil.copytree(folder, other)
        words = ["--cpu-devices", devices, "--mesh.replica", devices, "--mesh.fsdp", 1]
        research("resume", other, *words, "--run.steps", 10)
        assert losses(other) == pytest.approx(losses(whole), rel=RELATIVE)


def test_every_rule_goes_on_bit_for_bit_from_a_checkpoint(
    rule: Any, small: Any, run: Any, tmp_path: Path
) -> None:
    """Whatever a rule remembers is in the checkpoint: errors, momenta, centers, weights."""
    exchange = replace(rule, replicas=4)
    here = run(small["table"], MeshConfig(replica=2, data=1, fsdp=2), 4, exchange=exchange)
    learner = here.learner
    batches = [place(rows, here.sharding, 16) for rows in small["table"].batches(5)]

    def go_on(state: Any, batches: list[Any]) -> tuple[list[float], Any]:
        losses = []
        for batch in batches:
            state, metrics = learner.step(state, batch)
            losses.append(float(metrics["loss"]))
        return losses, state

    with jax.set_mesh(here.mesh):
        whole, last = go_on(learner.init(), batches)
        _, middle = go_on(learner.init(), batches[:3])  # between two exchanges of every second step
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(3, middle)
        checkpoints.wait()
        step, restored = checkpoints.restore(learner.abstract_state)
        losses, state = go_on(restored, batches[3:])
        checkpoints.close()
    assert (step, losses) == (3, whole[3:])
    for leaf, its in zip(*map(jax.tree.leaves, jax.device_get((state, last))), strict=True):
        np.testing.assert_array_equal(leaf, its)


def test_every_server_goes_on_bit_for_bit_from_a_checkpoint(
    server: Any, small: Any, run: Any, tmp_path: Path
) -> None:
    """What workers have fetched is in the checkpoint; who comes next follows from the step."""
    mesh = MeshConfig(replica=2, data=1, fsdp=2)
    here = run(small["table"], mesh, 4, asynchronous=server)
    learner, checkpoints = here.learner, Checkpoints(tmp_path / "checkpoints")
    rows = [place(each, here.sharding, 16) for each in small["table"].batches(6)]

    def go_on(its: Any, state: Any, start: int, end: int) -> Any:
        for step in range(start, end):
            state, _ = its.step(state, rows[step] | its.events(step))
        return state

    with jax.set_mesh(here.mesh):
        last = go_on(learner, learner.init(), 0, 6)
        checkpoints.save(3, go_on(learner, learner.init(), 0, 3))
        checkpoints.wait()
        again = run(small["table"], mesh, 4, asynchronous=server).learner
        step, restored = checkpoints.restore(again.abstract_state)
        state = go_on(again, restored, step, 6)
        checkpoints.close()
    for leaf, its in zip(*map(jax.tree.leaves, jax.device_get((state, last))), strict=True):
        np.testing.assert_array_equal(leaf, its)


WORKERS = [
    *("--cpu-devices", 4, "--mesh.replica", 2, "--mesh.data", 1, "--mesh.fsdp", 2),
    *("--asynchronous.rule", "dc_asgd", "--asynchronous.compensation-decay", 0.9),
    *("--asynchronous.durations", "exponential", "--model.dropout", 0.1),
    *("--run.steps", 8, "--run.checkpoint-every", 2, "--run.keep-checkpoints", 3),
]


def test_a_server_is_resumed_bit_for_bit_and_on_another_mesh(
    config: Path, tmp_path: Path, research: Any, resumed: Any, metrics: Any, losses: Losses
) -> None:
    other = tmp_path / "other"
    folder, whole = resumed(config, *WORKERS)
    assert losses(folder) == losses(whole)
    assert_same_checkpoint(folder, whole, 8)
    names = ("staleness", "staleness_mean", "staleness_0", "virtual_seconds", "bytes_sent_total")
    told, wanted = ([[r[n] for n in names] for r in metrics(f)] for f in (folder, whole))
    assert told == wanted

    research("resume", whole, "--cpu-devices", 4, "--run.steps", 10)
    shutil.copytree(folder, other)
    words = ["--cpu-devices", 1, "--mesh.replica", 1, "--mesh.fsdp", 1]
    research("resume", other, *words, "--run.steps", 10)
    assert losses(other) == pytest.approx(losses(whole), rel=RELATIVE)
    # And what came of it is a model as any other.
    assert "step 10, validation split" in research("evaluate", other, *words).stdout
    research("sample", other, "--prompt", "The ", "--tokens", 4)
    research("export", other, "--to", tmp_path / "exported")


@pytest.mark.distributed
def test_another_number_of_processes_goes_on_within_the_layout_tolerance(
    undisturbed: Path, tmp_path: Path, research: Any, losses: Losses
) -> None:
    folder = half_way(undisturbed, tmp_path)
    research("launch", "--processes", 2, "--", "resume", folder, "--cpu-devices", 1)
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=RELATIVE)
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    # And back: what two processes saved, one can read.
    again = research("resume", folder, "--cpu-devices", 2, "--run.steps", STEPS + 2)
    assert f"restored step {STEPS}" in again.stdout
    assert len(losses(folder)) == STEPS + 2


def half_way(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the run as it was some steps before its end."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for step in complete(folder)[1:]:
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def test_a_termination_saves_and_says_how_to_go_on(
    undisturbed: Path,
    config: Path,
    tmp_path: Path,
    research: Any,
    until: Any,
    metrics: Any,
    losses: Losses,
) -> None:
    folder = tmp_path / "run"
    words = ["--run.directory", folder, "--run.checkpoint-every", 0]
    process = research.start("train", config, *RUN, *words)
    until(lambda: metrics(folder), process)
    process.send_signal(signal.SIGTERM)
    done = research.end(process, status=0)
    assert "SIGTERM: stopping after this step" in done.stderr
    [step] = complete(folder)
    assert step < STEPS
    assert f"SIGTERM: saved at step {step} of {STEPS}" in done.stdout
    assert f"`research resume {folder}`" in done.stdout
    assert list(losses(folder)) == list(range(1, step + 1))
    research("resume", folder, "--cpu-devices", 2, "--run.checkpoint-every", 2)
    assert losses(folder) == losses(undisturbed)
    assert_same_checkpoint(folder, undisturbed, STEPS)


@pytest.mark.distributed
def test_a_signal_to_several_processes_saves_at_one_step(
    config: Path, tmp_path: Path, research: Any, until: Any, metrics: Any, losses: Losses
) -> None:
    mesh = ["--cpu-devices", 1, "--mesh.data", 2, "--run.steps", 400]
    launch = ["launch", "--processes", 2, "--"]
    folder = tmp_path / "run"
    process = research.start(*launch, "train", config, *mesh, "--run.directory", folder)
    until(lambda: metrics(folder), process)
    process.send_signal(signal.SIGTERM)
    done = research.end(process, status=0)
    step = complete(folder)[-1]
    assert f"saved at step {step} of 400; go on with `research resume {folder}`" in done.stdout
    end = step + 4
    research(*launch, "resume", folder, "--cpu-devices", 1, "--run.steps", end)
    other = tmp_path / "undisturbed"
    words = ["--run.steps", end, "--run.directory", other]
    research(*launch, "train", config, *mesh, *words)
    assert losses(folder) == losses(other)
    assert_same_checkpoint(folder, other, end)


def test_a_finished_run_says_so(undisturbed: Path, research: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.name != ".lock"}
    done = research("resume", undisturbed, "--cpu-devices", 2)
    assert f"already at step {STEPS} of {STEPS}: --run.steps sets a later end" in done.stdout
    after = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.name != ".lock"}
    assert after == before


# The order of the data ------------------------------------------------------------------------


def test_the_examples_of_a_step_are_those_of_any_number_of_hosts(config: Path) -> None:
    """The rows that hosts read make up one and the same batch, however many read them, and
    wherever they begin."""
    source = TextConfig(source=str(Path(__file__).parents[2] / "LICENSE"), context=16).load().train
    whole = Batches(source, batch=8, seed=5)
    for hosts in (1, 2, 4):
        parts = np.array_split(np.arange(8), hosts)
        for step in (0, 7, 2000):  # the last in another epoch
            read = [Batches(source, 8, seed=5).rows(step, rows)["inputs"] for rows in parts]
            np.testing.assert_array_equal(
                np.concatenate(read), source.rows(whole.indexes(step))["inputs"]
            )
    later = whole.iterate(3, np.arange(8))
    np.testing.assert_array_equal(next(later)["targets"], whole.rows(3, np.arange(8))["targets"])
    later.close()


def test_every_process_reads_its_own_rows_once() -> None:
    mesh = MeshConfig(data=4, tensor=2).build(jax.devices("cpu"))
    np.testing.assert_array_equal(rows_of_this_process(batch_sharding(mesh, 12), 12), np.arange(12))
