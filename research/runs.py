"""What becomes of an experiment: a run, and its resumption.

Both are a straight road: data, mesh, model, state, loop. With several processes all
of them walk it together; process 0 prints, and writes the files that all share.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data import Cohorts
from research.errors import Preempted, RunError, UserError
from research.experiment import Experiment
from research.learning import State
from research.parallel.compilation import compile_together
from research.parallel.mesh import describe
from research.parallel.processes import (
    barrier,
    count,
    gathered,
    index,
    is_first,
    shared,
)
from research.parallel.saying import say, warn
from research.parallel.stopping import StopRequest
from research.parallel.supervision import GROWTH, dump_stacks_to, on_explain, on_leave, phase, tell
from research.plans import settled
from research.preflight import check_meeting, check_room
from research.prepared import Prepared, check_same_data, describe_data
from research.trained import text_of
from research.training import snapshots as memory
from research.training.checkpoints import Checkpoints
from research.training.folder import RunFolder, new_place
from research.training.loop import Journal
from research.training.loop import train as run_loop
from research.training.metrics import JsonLines, TensorBoard, Tracker, WeightsAndBiases, keep_until
from research.training.progress import ProgressReport
from research.training.provenance import environment
from research.training.snapshot_files import folder_of
from research.training.snapshots import Snapshots


def train(experiment: Experiment, name: str = "run") -> Path:
    """Runs `experiment` in a new run folder, and returns the folder.

    Raises UserError for what cannot be done, RunError for a run that had to stop, Preempted for one
    that was told to, where the environment wants to know.
    """
    directory = shared("run folder", experiment.run.directory or new_place(name))
    experiment = replace(experiment, run=replace(experiment.run, directory=directory))
    folder = RunFolder(Path(directory))
    say(f"run folder: {folder.path}")
    if is_first():
        folder.create()
    with _locked(folder):
        prepared = _prepare_or_leave_no_trace(experiment, folder)
        if is_first():
            describe_data(folder, prepared)
            folder.write("environment", environment(experiment.run.seed))
            # Before it is a run: a supervisor has to know that it may be one.
            tell(folder=str(folder.path.absolute()), identity=folder.identity())
            # Last: with it the folder is a run. In it is what the mesh decided.
            folder.write("config", prepared.experiment.to_json())
        barrier("run folder")
        with jax.set_mesh(prepared.mesh):
            _carry_on(prepared, folder)
    say(f"run folder: {folder.path}")
    return folder.path


def resume(path: Path, change: Callable[[Experiment], Experiment] = lambda e: e) -> Path:
    """Goes on with the run in `path` from its newest complete checkpoint.

    `change` may alter the experiment: more steps, another mesh. Raises as `train`.
    """
    folder = RunFolder.existing(path)
    say(f"run folder: {folder.path}")
    with _locked(folder):
        before = Experiment.from_json(folder.read("config"))
        prepared = settled(Prepared(change(before)), say)
        experiment = prepared.experiment
        check_same_data(folder, prepared)

        def record() -> None:
            folder.write_again(environment(experiment.run.seed))
            if experiment != before:
                folder.write("config", experiment.to_json())

        with jax.set_mesh(prepared.mesh):
            _carry_on(prepared, folder, restoring=True, record=record)
    say(f"run folder: {folder.path}")
    return folder.path


def _carry_on(
    prepared: Prepared,
    folder: RunFolder,
    restoring: bool = False,
    record: Callable[[], None] = lambda: None,
) -> None:
    """The road that a new and a resumed run share: state, step, loop, end.

    Process 0 calls `record` when state and step are there: a change that the run cannot go on with
    is not written down.
    """
    run = prepared.experiment.run
    dataset = prepared.dataset
    learner: Any = prepared.learner  # of states of its own kind
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        on_leave(stop.ask)
        stack.callback(on_leave, None)
        checkpoints = Checkpoints(folder.checkpoints, run.keep_checkpoints, run.keep_every)
        stack.callback(checkpoints.close)
        check_meeting(prepared.mesh)
        check_room(folder.path, learner.abstract_state)
        identity = shared("identity", folder.identity() if is_first() else "")
        snapshots = Snapshots.from_environment(identity, run.snapshot_every)
        tell(folder=str(folder.path.absolute()), identity=identity)
        dump_stacks_to(folder.stacks)
        phase("restoring")
        state: Any
        state, first = _initial_state(prepared, checkpoints, restoring, identity)
        if first >= run.steps and restoring:
            say(f"already at step {first} of {run.steps}: --run.steps sets a later end")
            phase("finished", at=first)
            return
        account = prepared.account
        end = run.steps if account is None else account.last_step(state, first, run.steps)
        phase("compiling")
        step_function = prepared.compile()
        on_explain(prepared.collectives)
        stack.callback(on_explain, None)
        if is_first():
            record()
        say(_introduction(prepared, state))

        progress = stack.enter_context(
            ProgressReport(first, run.steps, dataset.unit, quiet=not is_first())
        )
        trackers: list[Tracker] = [progress]
        seconds = 0.0
        if is_first():
            kept = keep_until(folder.metrics, first)
            seconds = float(kept[-1]["seconds"]) if kept else 0.0
            trackers.append(JsonLines(folder.metrics))
            if run.tensorboard:
                trackers.append(TensorBoard(folder.tensorboard, first))
            if run.wandb_project is not None:
                config = prepared.experiment.to_json()
                trackers.append(WeightsAndBiases(run.wandb_project, folder.path, config))
        for tracker in trackers:
            stack.callback(tracker.close)
        phase("training")
        feed = prepared.feed(first)
        stack.callback(feed.close)  # type: ignore[attr-defined]
        state, last = run_loop(
            step_function,
            state,
            feed,
            replace(run, steps=end),
            start=first,
            journal=Journal(trackers, dataset.unit, prepared.units_per_step, first, seconds),
            evaluate=lambda state: prepared.evaluate(
                state, dataset.validation, prepared.clients("validation")
            ),
            observe=prepared.observe,
            complaint=learner.complaint,
            checkpoints=checkpoints,
            snapshots=snapshots,
            progress=progress,
            stop=stop,
            indexes=prepared.batches.indexes,
            folder=folder.path,
        )
        phase("ending")
        if last == run.steps and run.sample_tokens and dataset.vocabulary is not None:
            key = jax.random.key(run.seed)
            text = text_of(learner, state, dataset.vocabulary, "", run.sample_tokens, key)
            progress.line(f"\nsample of {run.sample_tokens} tokens:\n{text.strip()}\n")
            if is_first():
                (folder.path / "sample.txt").write_text(text, encoding="utf-8")
        checkpoints.wait()
        if last == run.steps and is_first():
            _draw_clients(prepared, folder)
        if account is not None and last == end < run.steps:
            raise RunError(
                f"{account.in_words(state)}: step {end + 1} of {run.steps} would cross the "
                f"budget of ε = {account.budget.epsilon:g}, and was not made; step {end} is saved"
            )
        reason = stop.signal_name or "stopped"
        if last < run.steps and reason != GROWTH:
            progress.line(
                f"{reason}: saved at step {last} of {run.steps}; "
                f"go on with `research resume {folder.path}`"
            )
        phase("finished" if last == run.steps else "stopped", at=last, reason=reason)
    if last < run.steps and Preempted.wanted():
        raise Preempted


def _initial_state(
    prepared: Prepared, checkpoints: Checkpoints, restoring: bool, identity: str
) -> tuple[State, int]:
    learner: Any = prepared.learner
    if restoring and (there := _from_memory(prepared, checkpoints.latest(), identity)):
        return there
    if restoring and checkpoints.latest() is not None:
        first, state = checkpoints.restore(learner.abstract_state, warn)
        say(f"restored step {first}")
        tell(restored=first, source="checkpoint")
        return state, first
    if restoring:
        say("no checkpoint was complete yet: beginning again at step 0")
    state = compile_together(learner.init.lower())()
    source = prepared.experiment.run.initialize_from
    if source is not None:
        state = learner.with_parameters(state, _imported(prepared, Path(source)))
    return state, 0


def _from_memory(prepared: Prepared, latest: int | None, identity: str) -> tuple[Any, int] | None:
    """State and step of the snapshot in the memory of hosts, if there is one that is newer than the
    `latest` checkpoint, and every process can read it."""
    step: int | None
    if (host := os.environ.get("RESEARCH_HOST")) is not None:
        step = int(os.environ["RESEARCH_SNAPSHOT"])  # what the supervisor brought together
        place = folder_of(identity, host)
    elif count() == 1:  # a supervisor that was killed may have left one
        place = folder_of(identity, platform.node())
        step = memory.newest(place, identity)
    else:
        return None
    if step is None or step <= (latest or 0):
        return None
    state: Any = None
    complaint = ""
    try:
        state = memory.restore(place, identity, step, prepared.learner.abstract_state)
    except (OSError, ValueError, StopIteration) as error:
        complaint = f"process {index()}: {error or 'it is not whole'}"
    complaints = [text for text in gathered("snapshot", complaint) if text]
    if complaints:
        warn(f"the snapshot of step {step} cannot be read ({complaints[0]}); taking a checkpoint")
        return None
    say(f"restored step {step} from memory")
    tell(restored=step, source="snapshot")
    return state, step


def _imported(prepared: Prepared, source: Path) -> Any:
    """Parameters from a Hugging Face folder, placed as the learner wants them."""
    from research.models import huggingface

    config, _, parameters = huggingface.load(source)
    parameters = prepared.learner.in_rounds(parameters)
    wanted = prepared.learner.abstract_state.parameters
    flat = dict(jax.tree_util.tree_leaves_with_path(parameters))
    expected = dict(jax.tree_util.tree_leaves_with_path(wanted))
    for path in sorted(flat.keys() | expected.keys(), key=str):
        there = flat[path].shape if path in flat else "missing"
        here = expected[path].shape if path in expected else "missing"
        if there != here:
            raise UserError(
                f"{source} holds another model: {jax.tree_util.keystr(path)} is {there} there and "
                f"{here} in this config; its form is {config}"
            )
    return jax.tree.map(
        lambda leaf, like: jax.device_put(np.asarray(leaf, like.dtype), like.sharding),
        parameters,
        wanted,
    )


def _prepare_or_leave_no_trace(experiment: Experiment, folder: RunFolder) -> Prepared:
    try:
        return settled(Prepared(experiment), say)
    except BaseException:
        if is_first():
            folder.leave_no_trace()
        raise


def _draw_clients(prepared: Prepared, folder: RunFolder) -> None:
    """Who has which labels, if there are clients; at the end, where nobody waits for matplotlib."""
    path = folder.path / "clients.svg"
    if prepared.federation is None or path.exists():
        return
    from research.reporting.clients import client_labels

    client_labels(prepared.federation.train, path)


def _introduction(prepared: Prepared, state: State) -> str:
    dataset, mesh = prepared.dataset, prepared.mesh
    one = jax.eval_shape(prepared.learner.parameters, state)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(one))
    device = mesh.devices.flat[0].device_kind
    where = f"{mesh.size} {device} device{'s' if mesh.size > 1 else ''}"
    if count() > 1:
        where += f" of {count()} processes"
    batches = prepared.batches
    clients = f"; {batches.in_words()}" if isinstance(batches, Cohorts) else ""
    if clients and mesh.shape["stage"] > 1:
        clients += (
            f"; over --mesh.stage {mesh.shape['stage']} they are evaluated all together, so that "
            "nothing is told of the mean, the deviation and the worst tenth of them"
        )
    attack, replicas = prepared.experiment.attack, prepared.experiment.exchange.replicas
    if attack.name != "none":
        of = len(batches.clients) if isinstance(batches, Cohorts) else replicas or 1
        clients += f"; {attack.number(of)} of {of} are Byzantine: {attack.name}"
    ensemble = prepared.experiment.ensemble
    members = "" if ensemble.rule == "none" else f"{ensemble.members} members, each a "
    return (
        f"{members}{type(prepared.experiment.model).__name__.removesuffix('Config')} with "
        f"{parameters:,} parameters on {dataset.name} ({len(dataset.train):,} training examples); "
        f"mesh {describe(mesh)} on {where}; step compiled in {prepared.compiling_seconds:.1f} s"
        f"{clients}"
    )


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """The folder's lock, held by process 0 for all."""
    with folder.locked() if is_first() else contextlib.nullcontext():
        yield
