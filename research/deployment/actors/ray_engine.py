"""Ray as the engine: a server and its workers as actors, each in a process of its own.

Ray places them, calls them, and starts a server anew that died; its calls are made at least once.
What is left to do here is to notice a worker that died or hangs, to end it, and to start another
in its place. Ray is imported when it is used, and not before.
"""

import contextlib
import os
import platform
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from research.errors import RunError, UserError

LOOK_EVERY = 0.2
"""Seconds from one look at server and workers to the next."""

SERVER_SECONDS = 600.0
"""A server that answers nothing for so long is ended, and started anew."""

DEATHS = 3
"""A worker that dies so often, one time after the other without a push, is left out."""

KNOCK_SECONDS = 10.0
"""How long a cluster may take to answer."""

START_SECONDS = 600.0
"""A worker that did not pull so long after its start is taken for hung."""

LEAVE_SECONDS = 5.0
"""How long workers may take to leave at the end."""

STORE_BYTES = 2**28
"""Shared memory of a Ray that is started here; larger messages go by way of the disk."""


@dataclass(frozen=True)
class Options:
    """How many, and where."""

    workers: int
    address: str | None = None
    """Of a Ray cluster; None: that of RAY_ADDRESS, or else one on this machine, for this run."""
    cpus: float = 1.0
    """Of a worker, as Ray counts them."""
    gpus: float = 0.0
    """Of a worker."""
    hang_seconds: float = 30.0
    """A turn may take as long, or 20 times the median."""
    return_seconds: float = 20.0
    """How long a worker that died stays out."""


class Host:
    """A program in a process of its own: what an actor is made of."""

    def __init__(self, make: Callable[[], Any]):
        self._program = make()

    def where(self) -> tuple[str, int]:
        """Machine and process."""
        return platform.node(), os.getpid()

    def call(self, name: str, *arguments: Any) -> Any:
        """Of a server: answers a message."""
        return getattr(self._program, name)(*arguments)

    def work(self, server: Any) -> str | None:
        """Of a worker: works until all is done; returns why it could not, if so."""
        ray = imported()
        try:
            self._program.work(lambda *message: ray.get(server.call.remote(*message)))
        except UserError as error:
            return str(error)
        return None


def imported() -> Any:
    """Ray. Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError(
            "--engine ray needs Ray, which is not installed here: run `make setup EXTRA=ray`, or "
            "train in virtual time, without --engine"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raises OSError where nobody answers at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


class Engine:
    """The actors of one run. `make_server` and `make_worker(number)` make their programs, each in
    the process that runs it."""

    def __init__(
        self,
        options: Options,
        make_server: Callable[[], Any],
        make_worker: Callable[[int], Callable[[], Any]],
        line: Callable[[str], None],
    ):
        self._ray, self._options, self._line = imported(), options, line
        self._make_worker = make_worker
        self._connect()
        node = self._ray.get_runtime_context().get_node_id()
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)
        actor = self._ray.remote(Host)
        self._actor = actor
        self._server = actor.options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        ).remote(make_server)
        self._workers: dict[int, Any] = {}
        self._places: dict[int, Any] = {}
        self._work: dict[Any, int] = {}  # by the promise of its end
        self._started: dict[int, float] = {}
        self._deaths = [0] * options.workers
        self._pushes = [0] * options.workers  # when it last died
        self._back: dict[int, float] = {}  # when a dead one is started again
        self.left_out: set[int] = set()
        self.lost = 0

    def run(
        self, look: Callable[[dict[str, Any]], None], stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """Starts the workers and waits for the end; `look` is shown what the server tells, until
        `stop` says so. Returns what it told last.

        Raises RunError where no worker is left.
        """
        told = self._ask("tick", self._options.hang_seconds)
        for worker in range(self._options.workers):
            if not told["over"]:
                self._start(worker)
        while not told["over"]:
            done, _ = (
                self._ray.wait(list(self._work), timeout=LOOK_EVERY) if self._work else ([], 0)
            )
            if not self._work:
                time.sleep(LOOK_EVERY)
            before, told = told, self._ask("tick", self._options.hang_seconds)
            look(told)
            if told["over"]:
                break
            if told["epoch"] != before["epoch"]:  # it does not know who is away
                for worker in self.left_out | set(self._back):
                    self._ask("absent", worker)
            for promise in done:
                worker = self._work.pop(promise)
                reason = self._reason(promise)
                if reason is not None:
                    self._died(worker, reason, told)
            now = time.monotonic()
            late = {w for w, at in self._started.items() if now - at > START_SECONDS}
            for worker in {*told["overdue"], *(late - set(told["heard"]))}:
                if worker in self._workers:
                    self._end(worker)
                    self._died(worker, "hung", told)
            for worker in [w for w, at in self._back.items() if at <= now]:
                del self._back[worker]
                self._start(worker)
            if stop() and not told["over"]:
                told = self._ask("stop")
                look(told)
        return told

    def close(self) -> None:
        """Ends all processes, the hung ones included; workers that hear that all is done may take
        a moment to leave."""
        if self._work:
            every = list(self._work)
            _, rest = self._ray.wait(every, num_returns=len(every), timeout=LEAVE_SECONDS)
            for promise in rest:
                self._end(self._work[promise])
        self._ray.shutdown()

    def _connect(self) -> None:
        ray, options = self._ray, self._options
        given = options.address or os.environ.get("RAY_ADDRESS")
        words: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if given is None:
            cpus = max(1, round(options.workers * options.cpus))
            words |= {"num_cpus": cpus, "object_store_memory": STORE_BYTES}
            words |= {"include_dashboard": False}
        try:
            if given is not None:
                _knock(given)
            ray.init(address=given or "local", **words)
        except (ConnectionError, OSError) as error:
            raise UserError(
                f"there is no Ray cluster at {given} ({str(error).splitlines()[0]}): start one "
                "with `ray start --head`, or leave out --address and RAY_ADDRESS"
            ) from error

    def _ask(self, *message: Any) -> dict[str, Any]:
        """Asks the server, and starts it anew if it hangs."""
        while True:
            try:
                return self._ray.get(self._server.call.remote(*message), timeout=SERVER_SECONDS)
            except self._ray.exceptions.GetTimeoutError:
                self._line(f"warning: the server says nothing for {SERVER_SECONDS:.0f} s: again")
                self._ray.kill(self._server, no_restart=False)

    def _start(self, worker: int) -> None:
        options = self._options
        kind = self._actor.options(num_cpus=options.cpus, num_gpus=options.gpus)
        self._workers[worker] = actor = kind.remote(self._make_worker(worker))
        self._places[worker] = actor.where.remote()
        self._work[actor.work.remote(self._server)] = worker
        self._started[worker] = time.monotonic()

    def _reason(self, promise: Any) -> str | None:
        """Why a worker ended before the run did, if it did."""
        try:
            mistake = self._ray.get(promise)
        except self._ray.exceptions.RayActorError:
            return "died"
        except self._ray.exceptions.RayTaskError as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            return f"failed ({said[-1].strip()[:200]})"
        if mistake is not None:
            raise UserError(mistake)
        return None

    def _died(self, worker: int, reason: str, told: dict[str, Any]) -> None:
        self._ask("lost", worker)
        self._workers.pop(worker, None)
        self._work = {p: w for p, w in self._work.items() if w != worker}
        self.lost += 1
        pushes = told["pushes"][worker]
        self._deaths[worker] = self._deaths[worker] + 1 if pushes == self._pushes[worker] else 1
        self._pushes[worker] = pushes
        if self._deaths[worker] >= DEATHS:
            self.left_out.add(worker)
            self._line(
                f"warning: worker {worker} {reason}, {DEATHS} times without a push: it is left out"
            )
            if len(self.left_out) == self._options.workers:
                raise RunError(f"no worker is left: the last one {reason}")
            return
        self._back[worker] = time.monotonic() + self._options.return_seconds
        self._line(f"warning: worker {worker} {reason}: another one takes its place")

    def _end(self, worker: int) -> None:
        """Ends a worker, also one that hears nothing, if it is on this machine."""
        ray = self._ray
        ray.kill(self._workers.pop(worker))
        with contextlib.suppress(ray.exceptions.RayError, ProcessLookupError):
            machine, process = ray.get(self._places.pop(worker), timeout=0.1)
            if machine == platform.node():
                os.kill(process, signal.SIGKILL)
