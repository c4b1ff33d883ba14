"""The program of a server whose workers are processes: `Server`, with clock, files and data.

It is an actor that may be started anew at any moment, and then is empty: so all it knows lies in
the run folder.

    config.json, metrics.jsonl, checkpoints/ ...   as of any other run
    server/<step>.json                             beside the checkpoint of a step: who has what
    server/starts                                  how often it was started, by which leases differ
    pushes.jsonl                                   every push that counts, in its order
"""

import json
import time
from pathlib import Path
from typing import Any

import jax

from research.deployment.actors import Answer, InTurn, Pushed, Server, Taken, method_of
from research.deployment.actors.wire import decoded, encoded
from research.errors import Diverged, RunError, UserError
from research.experiment import Experiment
from research.learning import Asynchronous, LocalWorkers
from research.prepared import Prepared, check_same_data, describe_data
from research.trained import text_of
from research.training.checkpoints import Checkpoints
from research.training.folder import RunFolder, write_whole
from research.training.loop import FINITE, Journal
from research.training.metrics import JsonLines, Record, TensorBoard, Tracker, keep_until
from research.training.provenance import environment
from research.working import start_devices

Message = tuple[dict[str, Any], bytes]


class Serving:
    """The server of the run in `folder`. What it is asked first opens the run; a mistake is told by
    `tick`, and all workers then hear that they are done."""

    def __init__(
        self, experiment: dict[str, Any], folder: str, platform: str | None, devices: int | None
    ):
        self._content, self._folder = experiment, RunFolder(Path(folder))
        start_devices(platform, devices)
        self._run: _Run | None = None
        self._failed: tuple[str, int] | None = None

    def pull(self, worker: int) -> Message:
        """What `worker` is to do: its lease (epoch, sequence, steps), and the parameters and
        buffers to begin with."""
        return self._answered(lambda run: run.server.pull(worker, time.monotonic()))

    def push(
        self, worker: int, epoch: int, sequence: int, numbers: dict[str, float], arrays: bytes
    ) -> Message:
        """Takes in what `worker` made of a lease; answers as `pull`."""

        def push(run: "_Run") -> Answer:
            one = run.learner.one.abstract_state
            run.bytes_sent += len(arrays)
            update, buffers = decoded(arrays, (one.parameters, one.buffers))
            pushed = Pushed(update, buffers, numbers)
            return run.server.push(worker, epoch, sequence, pushed, time.monotonic())

        return self._answered(push)

    def tick(self, hang_seconds: float) -> dict[str, Any]:
        """How it stands: `step`, `over`, who is `overdue`, how many `pushes` each has made, the
        newest `records`, and `failed` with a sentence and a status if so."""
        overdue: list[int] = []
        if (run := self._opened()) is not None:
            try:
                with jax.set_mesh(run.prepared.mesh):
                    overdue = run.server.tick(time.monotonic(), hang_seconds)
                    if run.server.finished:
                        run.finish()
            except (UserError, RunError) as error:
                self._fail(error)
        return self._told(overdue)

    def lost(self, worker: int) -> None:
        """It is dead."""
        if (run := self._opened()) is not None:
            with jax.set_mesh(run.prepared.mesh):
                run.server.lost(worker, time.monotonic())

    def absent(self, worker: int) -> None:
        """It was dead before this server was started anew."""
        if (run := self._opened()) is not None:
            with jax.set_mesh(run.prepared.mesh):
                run.server.absent(worker, time.monotonic())

    def stop(self) -> dict[str, Any]:
        """Saves, and is done."""
        if (run := self._opened()) is not None:
            with jax.set_mesh(run.prepared.mesh):
                run.stop()
        return self._told([])

    def _told(self, overdue: list[int]) -> dict[str, Any]:
        run = self._run
        told: dict[str, Any] = {"failed": self._failed, "over": self._failed is not None}
        if run is None:
            return told | {"overdue": []}
        return told | {
            "epoch": run.server.epoch,
            "step": run.server.step,
            "first": run.first,
            "unit": run.prepared.dataset.unit,
            "introduction": run.introduction,
            "over": told["over"] or run.over,
            "overdue": overdue,
            "heard": sorted(run.server.heard),
            "pushes": run.server.pushes,
            "taken": run.server.counts["taken"],
            "records": run.records[-50:],
            "observed": run.server.observe(),
        }

    def _answered(self, message: Any) -> Message:
        run = self._opened()
        if run is None or run.over:
            return {"finished": True, "lease": None}, b""
        try:
            with jax.set_mesh(run.prepared.mesh):
                answer = message(run)
        except (UserError, RunError) as error:
            self._fail(error)
            return {"finished": True, "lease": None}, b""
        lease, arrays = answer.lease, b""
        if lease is not None:
            arrays = encoded((lease.parameters, lease.buffers))
            run.bytes_sent += len(arrays)
        told = None if lease is None else [lease.epoch, lease.sequence, list(lease.steps)]
        return {"finished": answer.finished, "lease": told}, arrays

    def _opened(self) -> "_Run | None":
        if self._run is None and self._failed is None:
            try:
                self._run = _Run(Experiment.from_json(self._content), self._folder)
            except (UserError, RunError) as error:
                self._fail(error)
        return self._run

    def _fail(self, error: Exception) -> None:
        self._failed = str(error), 2 if isinstance(error, UserError) else 1


class _Run:
    """A run that is opened: what it was, restored, and all that is written down of it."""

    def __init__(self, experiment: Experiment, folder: RunFolder):
        self.folder, self._places = folder, folder.path / "server"
        prepared = Prepared(experiment)
        self.prepared, self.experiment = prepared, prepared.experiment
        assert isinstance(prepared.learner, Asynchronous | LocalWorkers)
        self.learner = prepared.learner
        run, asynchronous = self.experiment.run, self.experiment.asynchronous
        self._begin_folder()
        self._checkpoints = Checkpoints(folder.checkpoints, run.keep_checkpoints, run.keep_every)
        period = asynchronous.period if asynchronous.local else 1
        with jax.set_mesh(prepared.mesh):
            state, record = self._restored()
        deck = record.get("deck", {"first": record["step"]})
        self.server = Server(
            method_of(self.learner, state),
            InTurn(run.steps, period, **deck),
            run.steps,
            asynchronous.workers,
            asynchronous.meeting,
            self._epoch(),
            asynchronous.maximum_staleness,
            on_taken=self._on_taken,
        )
        self.server.recall(record)
        self.first, self.over = record["step"], record["step"] >= run.steps
        self.bytes_sent = record.get("bytes_sent", 0)
        self._last: dict[str, Any] = {}
        self.records: list[Record] = []
        kept = keep_until(folder.metrics, self.first)
        keep_until(folder.path / "pushes.jsonl", self.first)
        self._pushes = JsonLines(folder.path / "pushes.jsonl")
        trackers: list[Tracker] = [JsonLines(folder.metrics), _Kept(self.records)]
        if run.tensorboard:
            trackers.append(TensorBoard(folder.tensorboard, self.first))
        seconds = float(kept[-1]["seconds"]) if kept else 0.0
        self._began = time.monotonic() - seconds
        self._journal = Journal(
            trackers, prepared.dataset.unit, prepared.units_per_step, self.first, seconds
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(self.server.method.parameters))
        self.introduction = (
            f"{type(self.experiment.model).__name__.removesuffix('Config')} with {count:,} "
            f"parameters on {prepared.dataset.name} ({len(prepared.dataset.train):,} training "
            f"examples); {asynchronous.workers} workers, each a process, around a server: "
            f"{asynchronous.rule}"
        )

    def _begin_folder(self) -> None:
        """As `research train` begins one; a run that is gone on with has it all."""
        folder, prepared = self.folder, self.prepared
        here = environment(self.experiment.run.seed) | {"engine": "ray"}
        if (folder.path / "config.json").exists():
            check_same_data(folder, prepared)
            folder.write_again(here)
            return
        describe_data(folder, prepared)
        folder.write("environment", here)
        folder.write("config", self.experiment.to_json())

    def _restored(self) -> tuple[Any, dict[str, Any]]:
        """The state of the newest checkpoint, and what was known beside it."""
        if self._checkpoints.latest() is None:
            state = self.learner.init()
            return state, {"step": 0, **EMPTY, "sequences": self._zeros}
        step, state = self._checkpoints.restore(self.learner.abstract_state)
        path = self._places / f"{step}.json"
        if path.exists():
            return state, json.loads(path.read_text())
        return state, {"step": step, **EMPTY, "sequences": self._zeros}

    @property
    def _zeros(self) -> list[int]:
        return [0] * self.experiment.asynchronous.workers

    def _epoch(self) -> int:
        """How often the server was started, this time included."""
        self._places.mkdir(exist_ok=True)
        path = self._places / "starts"
        starts = int(path.read_text()) + 1 if path.exists() else 1
        write_whole(path, str(starts))
        return starts

    # While it runs --------------------------------------------------------------------------------

    def _on_taken(self, taken: Taken) -> None:
        run, step = self.experiment.run, self.server.step
        before = step - len(taken.steps)
        values = {name: float(v) for name, v in jax.device_get(taken.metrics).items()}
        for name in FINITE:
            if not abs(values[name]) < float("inf"):
                good = self._checkpoints.latest()
                raise Diverged(
                    f"{name.replace('_', ' ')} is {values[name]} at step {step}, by worker "
                    f"{taken.worker}; the last good checkpoint is {good or 'that of the start'}: "
                    "lower the learning rate"
                )
        self._pushes.log(
            {
                "step": step,
                "worker": taken.worker,
                "epoch": taken.epoch,
                "sequence": taken.sequence,
                "steps": list(taken.steps),  # type: ignore[dict-item]
                "staleness": taken.staleness,
                "seconds": round(time.monotonic() - self._began, 4),
            }
        )
        self._last = values | {"staleness": taken.staleness}
        if step >= run.steps:
            return  # the end writes it all down

        def due(every: int) -> bool:
            return every > 0 and step // every > before // every

        if due(run.evaluate_every):
            self._evaluate(step)
        elif before == 0 or due(run.log_every):
            self._journal.write(self._measured(step))
        if due(run.checkpoint_every):
            self._save(step)

    def _measured(self, step: int) -> Record:
        observed = self.server.observe()
        observed.pop("bytes_sent")
        return self._journal.measure(
            step, self._last | observed | {"bytes_sent_total": self.bytes_sent}
        )

    def _evaluate(self, step: int) -> None:
        record = self._measured(step)
        with self._journal.paused():
            metrics = self.prepared.evaluate(
                self.server.method.state(step), self.prepared.dataset.validation
            )
        self._journal.write(record | {f"validation_{name}": v for name, v in metrics.items()})

    def _save(self, step: int) -> None:
        record = self.server.record() | {"bytes_sent": self.bytes_sent}
        write_whole(self._places / f"{step}.json", json.dumps(record))
        self._checkpoints.save(step, self.server.method.state(step))
        for path in self._places.glob("*.json"):  # of checkpoints that are gone
            if int(path.stem) < (self._checkpoints.oldest() or 0):
                path.unlink()

    def finish(self) -> None:
        """The end: an evaluation, a checkpoint, and text of a language model."""
        if self.over:
            return
        run, dataset, step = self.experiment.run, self.prepared.dataset, self.server.step
        self._evaluate(step)
        self.stop()
        if run.sample_tokens and dataset.vocabulary is not None:
            key, state = jax.random.key(run.seed), self.server.method.state(step)
            text = text_of(self.learner, state, dataset.vocabulary, "", run.sample_tokens, key)
            (self.folder.path / "sample.txt").write_text(text, encoding="utf-8")

    def stop(self) -> None:
        """Saves what there is."""
        if not self.over:
            self._save(self.server.step)
            self._checkpoints.wait()
            self.over = True


EMPTY: dict[str, Any] = {"version": 0, "pending": 0, "counts": {}, "staleness": []}
"""What a server knows that was never asked."""


class _Kept:
    """A tracker that keeps what was logged, for whoever started the run."""

    def __init__(self, records: list[Record]):
        self._records = records

    def log(self, record: Record) -> None:
        self._records.append(record)

    def close(self) -> None:
        """As every tracker."""
