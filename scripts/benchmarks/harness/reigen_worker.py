"""Our side: the compiled step of an experiment, fed and read as the training loop does it.

    python -m harness.reigen_worker '{"experiment": <Experiment.to_json()>}'

Its functions: `device` names the device, `parity` trains a few steps, returns their losses and
writes weights, batches and tokens for the other side, `run` measures steps.
"""

import json
import sys
import time
from typing import Any

import jax
import numpy as np

from harness.workers import serve
from research.experiment import Experiment
from research.prepared import Prepared


class ReigenTraining:
    """`research.prepared.Prepared`, its state and its feed."""

    def __init__(self, settings: dict[str, Any]):
        self.experiment = Experiment.from_json(settings["experiment"])
        self.prepared: Prepared | None = None

    def device(self) -> dict[str, Any]:
        """Backend (cpu, gpu), kind of its first device, and how many there are."""
        devices = jax.devices()
        return {
            "backend": jax.default_backend(),
            "kind": devices[0].device_kind,
            "devices": len(devices),
        }

    def parity(self, path: str, steps: int) -> list[float]:
        """Losses of the first `steps` steps, each before its update.

        Writes to `path` (npz) the initial weights, those steps' batches and learning rates, and the
        training tokens.
        """
        self.prepared = prepared = Prepared(self.experiment)
        with jax.set_mesh(prepared.mesh):
            self.state = prepared.learner.init()
            self.step = prepared.compile()
        parameters = jax.device_get(self.state.parameters)
        rows = [prepared.batches.rows(step, prepared.rows.own) for step in range(steps)]
        schedule = self.experiment.optimizer.learning_rate_schedule(self.experiment.run.steps)
        np.savez(
            path,
            inputs=np.stack([batch["inputs"] for batch in rows]),
            targets=np.stack([batch["targets"] for batch in rows]),
            tokens=np.asarray(prepared.dataset.train.tokens, np.uint16),
            learning_rates=np.array([float(schedule(step)) for step in range(steps)]),
            **{f"parameters.{name}": array for name, array in _dotted(parameters)},
        )
        self.feed = prepared.feed(0)
        return [self._one_step()["loss"] for _ in range(steps)]

    def parameters(self) -> int:
        """How many parameters there are, learned positions not counted."""
        tree = dict(self.state.parameters)
        tree.pop("position", None)
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    def run(self, steps: int, synchronize: bool) -> tuple[list[float], list[float]]:
        """Wall and CPU seconds of each step, its batch and the reading of its metrics included.

        With `synchronize` false (a GPU), metrics are read at the end only, and the block's mean is
        all that is returned.
        """
        wall, cpu = [], []
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            if synchronize:
                self._one_step()
                now, now_cpu = time.perf_counter(), time.process_time()
                wall.append(now - began)
                cpu.append(now_cpu - began_cpu)
                began, began_cpu = now, now_cpu
            else:
                self.state, metrics = self.step(self.state, next(self.feed))
        if synchronize:
            return wall, cpu
        jax.device_get(metrics)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        return [seconds / steps], [cpu_seconds / steps]

    def _one_step(self) -> dict[str, float]:
        self.state, metrics = self.step(self.state, next(self.feed))
        return {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}


def _dotted(tree: Any) -> list[tuple[str, np.ndarray]]:
    return [
        (".".join(key.key for key in path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


if __name__ == "__main__":
    training = ReigenTraining(json.loads(sys.argv[1]))
    serve(
        {
            "device": training.device,
            "parity": training.parity,
            "parameters": training.parameters,
            "run": training.run,
        }
    )
