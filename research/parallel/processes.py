"""What one process of a run knows about the others: who it is, where they meet, how it leaves.

Several hosts run the same program, one process each, and `jax.distributed` joins them. The
environment says how: `research.parallel.placement` reads it. Where the launcher is a supervisor
that goes on when processes die, it sets besides

    RESEARCH_SERVICE       `apart`: the rendezvous is a process of its own, and not process 0's
    RESEARCH_ADDRESS       where the other hosts reach this process

Without them a run is one process and everything here is free. JAX is imported only by
`initialize`, so that the launcher and `--help` need not wait for it.
"""

import os
import signal
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Any, NoReturn

from research.errors import UserError
from research.parallel import placement
from research.parallel.supervision import ask_to_leave, supervised

RENDEZVOUS_SECONDS = 60
"""How long a process waits for the others to come to the coordinator."""

HEARTBEAT_SECONDS = 10
"""A process that was silent for so long is dead, and the others end (JAX's own value is 100)."""

ORPHAN_SECONDS = 30
"""How long a process may go on saving when the launcher that started it is gone."""


# Who is here ----------------------------------------------------------------------------------


def rendezvous() -> Any:
    """JAX's own record of the rendezvous, or None as long as nobody has imported JAX.

    `jax.process_index()` would do for numbers, but it starts the backend, which then can no longer
    be configured; the key-value store has no public name at all. Orbax uses this one, too.
    """
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state if distributed.global_state.client is not None else None


def index() -> int:
    """Number of this process, from 0."""
    joined = rendezvous()
    return 0 if joined is None else joined.process_id


def count() -> int:
    """Number of processes in the run."""
    joined = rendezvous()
    return 1 if joined is None else joined.num_processes


def is_first() -> bool:
    """Whether this is process 0: the one that prints and writes the files all share."""
    return index() == 0


# Coming together, and leaving -----------------------------------------------------------------


def initialize(cpu_devices: int | None = None) -> None:
    """Joins the other processes, if the environment names any. Call it before any use of JAX.

    Args:
        cpu_devices: make that many virtual CPU devices in this process, and use no other platform.

    Raises:
        UserError: the variables make no sense, or the processes did not find each other in
            `RENDEZVOUS_SECONDS`.
    """
    if cpu_devices is not None and cpu_devices < 1:
        raise UserError(f"--cpu-devices is {cpu_devices}: it must be 1 or more")
    place = placement.place()
    _follow_launcher()

    import jax

    if cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if place is None or rendezvous() is not None:
        return
    coordinator, processes, process = place.coordinator, place.processes, place.process
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own notifier would swallow SIGTERM from here on, also while the first step compiles and
    # nobody listens, and knows nothing of SIGINT. `StopRequest` does its work.
    jax.config.update("jax_enable_preemption_service", False)
    if address := os.environ.get("RESEARCH_ADDRESS"):
        _be_reached_at(address)
    if os.environ.get("RESEARCH_SERVICE") == "apart":
        _join(coordinator, processes, process)
    else:
        _meet(coordinator, processes, process)
    sys.excepthook = _end_with_traceback


def _meet(coordinator: str, processes: int, process: int) -> None:
    import jax

    host, _, port = coordinator.rpartition(":")
    bind = coordinator if _is_loopback(host) else f"[::]:{port}"
    if _is_loopback(host):
        # The warning is about HTTP proxies on the way to the coordinator: there is no way here.
        jax.config.update("jax_check_proxy_envs", False)
    if process == 0:
        _check_port(host if _is_loopback(host) else "", int(port))
    outcome: list[Exception | None] = []

    def initialize_jax() -> None:
        try:
            jax.distributed.initialize(
                coordinator_address=coordinator,
                num_processes=processes,
                process_id=process,
                cluster_detection_method="deactivate",
                initialization_timeout=RENDEZVOUS_SECONDS + 3600,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                # The service has no authentication: on one machine, nobody outside may reach it.
                coordinator_bind_address=bind,
            )
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    # At its own time-out JAX aborts the process with a C++ stack, which nothing in Python can
    # catch. So it waits in a thread, and we lose patience first.
    thread = threading.Thread(target=initialize_jax, name="rendezvous", daemon=True)
    thread.start()
    thread.join(RENDEZVOUS_SECONDS)
    if not outcome:
        raise UserError(
            f"process {process} of {processes} waited {RENDEZVOUS_SECONDS} s for the others at "
            f"{coordinator}: check that all {processes} processes run and that process 0 can be "
            "reached there from their hosts"
        )
    if outcome[0] is not None:
        raise outcome[0]


def _join(coordinator: str, processes: int, process: int) -> None:
    """As `_meet` for process 0 too, at a service that is nobody's.

    `jax.distributed.initialize` starts one in process 0 in any case.
    """
    import atexit

    import jax
    from jax._src import distributed
    from jaxlib import _jax

    state = distributed.global_state
    state.coordinator_address = coordinator
    state.process_id, state.num_processes = process, processes
    client = _jax.get_distributed_runtime_client(
        coordinator,
        process,
        init_timeout=RENDEZVOUS_SECONDS,
        use_compression=True,
        heartbeat_timeout=HEARTBEAT_SECONDS,
    )
    try:
        client.connect()
    except RuntimeError as error:
        # No UserError: whoever is missing may have died just now, and the supervisor tries again.
        raise TimeoutError(
            f"process {process} of {processes} on {socket.gethostname()} waited "
            f"{RENDEZVOUS_SECONDS} s for the others at {coordinator}"
        ) from error
    state.client = client
    atexit.register(jax.distributed.shutdown)


def _be_reached_at(address: str) -> None:
    """Lets the CPU's collectives listen at `address`. They would ask for the address of this
    host's name, which on many hosts is that of the loopback."""
    import functools

    from jax._src import xla_bridge

    made = xla_bridge._jax.make_gloo_tcp_collectives
    xla_bridge._jax.make_gloo_tcp_collectives = functools.partial(made, hostname=address)


def _check_port(host: str, port: int) -> None:
    """Raises UserError if the port is taken, where JAX would end in a segmentation fault."""
    with socket.socket() as probe:
        # Connections that an earlier run left in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"the coordinator cannot listen on port {port} ({error.strerror}): choose another "
                "in RESEARCH_COORDINATOR"
            ) from error


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def _follow_launcher() -> None:
    """Ends this process when the launcher that started it is gone, however it went.

    The launcher holds the writing end of a pipe and never writes: the end of file is its death,
    kill -9 included. (Linux could send a signal at the parent's death; a pipe does it on macOS as
    well, and lets us ask first, so that the run is saved, and insist later.)
    """
    lifeline = os.environ.pop("RESEARCH_LIFELINE", None)  # not for processes that we start
    if lifeline is None:
        return

    def follow() -> None:
        os.read(int(lifeline), 1)
        if supervised():  # it read what we print
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            ask_to_leave("SIGTERM")
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os.killpg(os.getpgid(0), signal.SIGKILL)  # the launcher gave us a session of our own

    threading.Thread(target=follow, name="launcher's lifeline", daemon=True).start()


def leave(status: int) -> NoReturn:
    """Ends this process now with `status`; what the command does after a failure.

    One of several processes that fails must not exit in the ordinary way: JAX's exit hook would
    wait for the others, which wait for this one in a collective.
    """
    if count() == 1:
        sys.exit(status)
    end(status)


def end(status: int) -> NoReturn:
    """Ends this process now, without Python's exit hooks.

    Also for an interrupt that was caught: if it came inside an `exec` of source text, as when a
    dataclass is made, Python ends itself by SIGINT on its ordinary way out, whatever the status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_traceback(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    sys.__excepthook__(kind, error, traceback)
    leave(128 + signal.SIGINT if kind is KeyboardInterrupt else 1)


_barriers: dict[str, int] = {}
_gatherings: dict[str, int] = {}


def barrier(name: str, seconds: float = 600.0) -> None:
    """Waits until every process has called this with the same `name`; touches no device.

    Raises:
        TimeoutError: some process did not come within `seconds`; the message says which.
    """
    joined = rendezvous()
    if joined is None:
        return
    _barriers[name] = _barriers.get(name, 0) + 1  # an identifier may be used only once
    try:
        joined.client.wait_at_barrier(f"research/{name}/{_barriers[name]}", round(seconds * 1000))
    except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise TimeoutError(
            f"not all processes came to {name!r} within {seconds:g} s: {error}"
        ) from error


def gathered(name: str, value: str) -> list[str]:
    """Every process's `value`, in their order; all have to call it, as often with each `name`."""
    joined = rendezvous()
    if joined is None:
        return [value]
    _gatherings[name] = _gatherings.get(name, 0) + 1  # a key may be set only once
    key = f"research/gathered/{name}/{_gatherings[name]}"
    joined.client.key_value_set(f"{key}/{index()}", value)
    return [
        joined.client.blocking_key_value_get(f"{key}/{other}", 600_000) for other in range(count())
    ]


def shared(name: str, value: str) -> str:
    """Process 0's `value`, on every process; `name` is used once in a run."""
    joined = rendezvous()
    if joined is None:
        return value
    if is_first():
        joined.client.key_value_set(f"research/shared/{name}", value)
        return value
    return joined.client.blocking_key_value_get(f"research/shared/{name}", 600_000)
