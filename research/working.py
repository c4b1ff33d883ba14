"""The program of a worker that is a process of its own: it pulls, computes and pushes."""

import time
from collections.abc import Callable
from typing import Any

import jax

from research.deployment.actors import Lease, Worker
from research.deployment.actors.wire import decoded, encoded
from research.experiment import Experiment
from research.learning import Asynchronous, LocalWorkers
from research.parallel import processes
from research.prepared import Prepared

WAIT = 0.02
"""Seconds until a worker that has nothing to do asks again."""

Ask = Callable[..., Any]
"""`ask(name, *arguments)`: a message to the server, and its answer; as `research.serving` has it.
It may be delivered more than once."""


class Working:
    """Worker `number` of an experiment, on the devices of this process."""

    def __init__(self, experiment: dict[str, Any], number: int, platform: str | None, devices: Any):
        """`experiment` as JSON; on `platform` if one is named, with so many virtual `devices`."""
        self._content, self._number = experiment, number
        start_devices(platform, devices)

    def work(self, ask: Ask) -> None:
        """Works until the server says that all is done."""
        prepared = Prepared(Experiment.from_json(self._content))
        learner = prepared.learner
        assert isinstance(learner, Asynchronous | LocalWorkers)
        rows, batches = prepared.rows, prepared.batches

        def batch(step: int) -> dict[str, jax.Array]:
            return rows.place(batches.rows(step, rows.own))  # type: ignore[arg-type]

        one, number = learner.one.abstract_state, self._number
        slowness = self._slowness(prepared.experiment)
        with jax.set_mesh(prepared.mesh):
            worker = Worker(learner, batch)
            worker.compile()
            answer, arrays = ask("pull", number)
            while not answer["finished"]:
                if answer["lease"] is None:
                    time.sleep(WAIT)
                    answer, arrays = ask("pull", number)
                    continue
                began = time.perf_counter()
                fetched = decoded(arrays, (one.parameters, one.buffers))
                epoch, sequence, steps = answer["lease"]
                pushed = worker.work(Lease(epoch, sequence, tuple(steps), 0, 0.0, *fetched))
                sent = encoded((pushed.update, pushed.buffers))
                time.sleep(slowness * (time.perf_counter() - began))
                answer, arrays = ask("push", number, epoch, sequence, pushed.numbers, sent)

    def _slowness(self, experiment: Experiment) -> float:
        """What the last worker waits after a turn, as a share of it, if it is to be slow."""
        last = self._number == experiment.asynchronous.workers - 1
        return experiment.asynchronous.slow_factor - 1 if last else 0.0


def start_devices(platform: str | None, devices: int | None) -> None:
    """Chooses the devices of this process, before JAX looks for them."""
    if platform is not None:
        jax.config.update("jax_platforms", platform)
    processes.initialize(devices)
