"""A small model, its learners by rule, and what workers of this process make of their leases."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from research.deployment.actors import InTurn, Lease, Pushed, Server, Worker, method_of
from research.learning import AsynchronousConfig, OptimizerConfig, Synchronous
from research.models import MLPConfig, Specification
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig

TABLE = Specification(shape=(6,), classes=3)
STEPS = 24
RATE = optax.linear_schedule(0.2, 0.1, STEPS)
OPTIMIZER = OptimizerConfig("sgd", 0.2, "linear", beta1=0.5, clip=None)


class Foreseen:
    """The steps of every worker in virtual time, as turns."""

    def __init__(self, workers: Iterable[int], period: int, count: int):
        turns: list[list[int]] = [[] for _ in range(count)]
        for step, worker in enumerate(workers):
            turns[worker].append(step)
        self._turns = [
            deque(
                tuple(own[at : at + period])
                for at in range(0, len(own) - len(own) % period, period)
            )
            for own in turns
        ]

    def take(self, worker: int) -> tuple[int, ...] | None:
        return self._turns[worker].popleft() if self._turns[worker] else None

    def give_back(self, worker: int, steps: tuple[int, ...]) -> None:
        raise AssertionError("nobody is lost in virtual time")

    def to_json(self, lent: list[tuple[int, ...]]) -> dict[str, Any]:
        return {}


class Bench:
    """Learners that share what they compute a gradient by."""

    def __init__(self) -> None:
        self.mesh = MeshConfig(data=1).build(jax.devices()[:1])
        generator = np.random.default_rng(0)
        sharding = batch_sharding(self.mesh, 4)
        self.rows = [
            {
                "inputs": generator.normal(size=(4, 6)).astype(np.float32),
                "targets": generator.integers(3, size=4, dtype=np.int32),
            }
            for _ in range(STEPS)
        ]
        self.batches = [place(rows, sharding, 4) for rows in self.rows]
        self._made: dict[Any, Any] = {}

    def learner(self, config: AsynchronousConfig) -> Any:
        if config not in self._made:
            optimizer = OPTIMIZER.build(
                STEPS, optax.constant_schedule(1.0) if config.local else None
            )
            model = MLPConfig(widths=(8,), activation="tanh")
            one = Synchronous(model, TABLE, optimizer, RATE, self.mesh)
            self._made[config] = config.build(one, RATE)
        return self._made[config]

    def worker(self, config: AsynchronousConfig) -> Worker:
        return Worker(self.learner(config), lambda step: self.batches[step])

    def server(self, config: AsynchronousConfig, deck: Any = None, **words: Any) -> Server:
        learner = self.learner(config)
        period = config.period if config.local else 1
        deck = deck or InTurn(STEPS, period)
        method = method_of(learner, words.pop("state", None) or learner.init())
        return Server(
            method,
            deck,
            words.pop("total", STEPS),
            config.workers,
            config.meeting,
            bound=config.maximum_staleness,
            **words,
        )


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture
def foreseen() -> type[Foreseen]:
    return Foreseen


class Counting:
    """A method of plain numbers: a push is a number, and the server adds it up. What is pushed can
    so be found again in the sum, whatever was delivered twice or never."""

    buffers: Any = ()

    def __init__(self) -> None:
        self.parameters = 0.0
        self.taken: list[tuple[int, tuple[int, ...]]] = []
        self.merged: list[int] = []

    def own(self, worker: int) -> Any:
        return self.parameters

    def take(self, worker: int, lease: Lease, pushed: Pushed, staleness: int) -> dict[str, Any]:
        self.parameters += pushed.update
        self.taken.append((worker, lease.steps))
        return {}

    def merge(self, count: int) -> None:
        self.merged.append(count)

    def fetch(self, worker: int) -> None:
        pass

    def state(self, step: int) -> Any:
        return self.parameters


@pytest.fixture
def counting() -> Callable[..., tuple[Counting, Server]]:
    """A server of so many steps and workers that only counts."""

    def make(
        total: int, workers: int, meeting: Any, period: int = 1, **words: Any
    ) -> tuple[Counting, Server]:
        method = Counting()
        deck = words.pop("deck", None) or InTurn(total, period)
        return method, Server(method, deck, total, workers, meeting, **words)

    return make
