"""Several processes on this machine, as several hosts would be: `research launch -- train ...`.

Every process runs the same command; the environment tells it where to meet the others (see
`research.parallel.processes`). The launcher passes signals on, notices the first process that
fails, says which and why, and ends the rest. It imports no JAX.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import IO

from research.errors import Preempted, UserError

COMMANDS = ("train", "resume", "evaluate")
"""What makes sense in several processes."""

TAIL_LINES = 200
"""How many lines of output are kept of each process but the first."""

SETTLE_SECONDS = 1.0
"""After a failure, how long to wait for the others to fail of it: only then is the cause known."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Child:
    index: int
    process: subprocess.Popen[bytes]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    status: int | None = None
    """Exit status once it ended; the negative signal number if a signal ended it."""
    reader: threading.Thread | None = None


@dataclass
class _Ended:
    child: _Child
    status: int


def launch(
    processes: int, command: list[str], grace: float = 5.0, program: list[str] | None = None
) -> int:
    """Runs `research` with the arguments `command` in `processes` processes and waits for them.

    SIGINT, SIGTERM and SIGHUP (as SIGTERM) are passed on, and the processes may take their time to
    save. A second SIGINT leaves them `grace` seconds. Process 0 writes to our own output; that of
    the others is kept back, and its end shown if one of them is the first to fail.

    Args:
        grace: seconds between asking the rest to end after a failure and killing them.
        program: what to run in place of `python -m research`.

    Returns:
        0 if all ended with 0, `Preempted.STATUS` if they saved and want to be placed again, 2 if a
        user's mistake ended them (status 2), else 1.

    Raises:
        UserError: there is nothing to run, or nothing that makes sense in several processes.
    """
    if processes < 1:
        raise UserError(f"--processes is {processes}: it must be 1 or more")
    if program is None:
        check_command(command)
        program = [sys.executable, "-m", "research"]
    events: SimpleQueue[int | _Ended] = SimpleQueue()
    # SimpleQueue is the one queue that a signal handler may put into.
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                previous[number] = signal.signal(number, lambda number, _: events.put(number))
    lifeline, our_end = os.pipe()
    children: list[_Child] = []
    try:
        _start(children, processes, [*program, *command], lifeline, events)
        return _wait(children, events, grace)
    finally:
        for child in children:
            _signal(child, signal.SIGKILL)
        os.close(lifeline)
        os.close(our_end)
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_command(command: list[str]) -> None:
    """Raises UserError for what makes no sense in several processes."""
    known = f"{', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}"
    if not command:
        raise UserError(
            f"nothing to launch: give {known} after --, "
            "as in `research launch --processes 4 -- train CONFIG`"
        )
    if command[0] not in COMMANDS:
        raise UserError(f"cannot launch {command[0]!r} in several processes: only {known}")


def _start(
    children: list[_Child],
    processes: int,
    command: list[str],
    lifeline: int,
    events: "SimpleQueue[int | _Ended]",
) -> None:
    """Starts the processes, adding each to `children` at once, so that a failure leaks none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for index in range(processes):
        environment = os.environ | {
            "RESEARCH_COORDINATOR": f"127.0.0.1:{port}",
            "RESEARCH_PROCESSES": str(processes),
            "RESEARCH_PROCESS": str(index),
            # Each process follows us when we die: see processes._follow_launcher.
            "RESEARCH_LIFELINE": str(lifeline),
            # gRPC would ask an HTTP proxy, if there is one, for the way to this very machine.
            "no_grpc_proxy": "127.0.0.1",
        }
        # Two processes cannot share an accelerator; whoever knows better says so.
        environment.setdefault("JAX_PLATFORMS", "cpu")
        child = _Child(
            index,
            subprocess.Popen(
                command,
                env=environment,
                pass_fds=[lifeline],
                stdin=subprocess.DEVNULL,
                stdout=None if index == 0 else subprocess.PIPE,
                stderr=None if index == 0 else subprocess.STDOUT,
                # The terminal's Ctrl-C reaches only us, and whatever a process starts (loading
                # workers) can be ended with it, as one group.
                start_new_session=True,
            ),
        )
        children.append(child)
        if child.process.stdout is not None:
            child.reader = threading.Thread(
                target=_keep_tail, args=(child.process.stdout, child.tail), daemon=True
            )
            child.reader.start()
        threading.Thread(target=_await_end, args=(child, events), daemon=True).start()


def _keep_tail(stream: IO[bytes], tail: deque[str]) -> None:
    # A bounded readline: a progress bar without a line break must not grow without end.
    with stream:
        for line in iter(lambda: stream.readline(4096), b""):
            tail.append(line.decode(errors="replace").rstrip())


def _await_end(child: _Child, events: "SimpleQueue[int | _Ended]") -> None:
    pid = child.process.pid
    if hasattr(os, "waitid"):  # not on macOS before Python 3.13
        # Until it is reaped, the number of its group is nobody else's: end what it left behind.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    events.put(_Ended(child, child.process.wait()))


def _signal(child: _Child, number: int) -> None:
    """Signals the process and all that it started, unless it has ended."""
    if child.status is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended just now
            os.killpg(child.process.pid, number)


def _wait(children: list[_Child], events: "SimpleQueue[int | _Ended]", grace: float) -> int:
    """Passes signals on until all have ended, or the first failure; returns our exit status."""
    ended: list[_Child] = []  # in the order of their ends
    received: list[int] = []
    deadline = float("inf")
    while len(ended) < len(children):
        event = _next(events, deadline)
        if event is None:  # a second Ctrl-C did not help
            for child in children:
                _signal(child, signal.SIGKILL)
            deadline = float("inf")
        elif isinstance(event, _Ended):
            event.child.status = event.status
            ended.append(event.child)
            good = event.status in (0, Preempted.STATUS)
            if not good and not _was_told(event.status, received):
                return _end_the_rest(children, ended, events, grace)
            if not good:  # it left without a save, and the others cannot go on
                deadline = min(deadline, time.monotonic() + grace)
        else:
            received.append(signal.SIGTERM if event == signal.SIGHUP else event)
            for child in children:
                _signal(child, received[-1])
            if received.count(signal.SIGINT) > 1:
                deadline = min(deadline, time.monotonic() + grace)
    if all(child.status in (0, Preempted.STATUS) for child in children):
        return max(child.status or 0 for child in children)
    _say(f"stopped by {signal.Signals(received[0]).name} before the run could be saved")
    return 1


def _was_told(status: int, received: list[int]) -> bool:
    """Whether a process ended so because of the signals that we passed on."""
    ours = [*received, signal.SIGKILL] if received else []
    return (
        -status in ours  # ended by it
        or status - 128 in ours  # said so, in the manner of shells
        or ours.count(signal.SIGINT) > 1  # KeyboardInterrupt in whatever it did
    )


def _next(events: "SimpleQueue[int | _Ended]", deadline: float) -> int | _Ended | None:
    """The next event, or None at `deadline` (of the monotonic clock)."""
    try:
        if deadline == float("inf"):
            return events.get()
        return events.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        return None


def _end_the_rest(
    children: list[_Child],
    ended: list[_Child],
    events: "SimpleQueue[int | _Ended]",
    grace: float,
) -> int:
    """After the first failure: names its cause, ends the others, returns our exit status."""
    mistake = ended[-1].status == 2
    # A mistake in the command is every process's mistake: let process 0 print it. Of a crash the
    # others die in milliseconds if they notice, and are of no use if they do not.
    steps = [
        (grace if mistake else SETTLE_SECONDS, signal.SIGTERM),
        (grace, signal.SIGKILL),
        (grace, None),
    ]
    own = list(ended)
    for seconds, number in steps:
        deadline = time.monotonic() + seconds
        while len(ended) < len(children):
            event = _next(events, deadline)
            if event is None:
                break
            if isinstance(event, _Ended):
                event.child.status = event.status
                ended.append(event.child)
                if number == signal.SIGTERM:  # before we told it
                    own.append(event.child)
        if len(ended) == len(children):
            break
        if number is not None:
            for child in children:
                _signal(child, number)
    culprit = _culprit([child for child in own if child.status != 0])
    _report(culprit, len(children))
    return 2 if culprit.status == 2 else 1


def _culprit(failed: list[_Child]) -> _Child:
    """Which of the failures, in the order of their times, is the cause of the others.

    A signal from outside is never the consequence of a peer's death, but SIGABRT is: so does JAX
    end a process whose peer has fallen silent.
    """
    for child in failed:
        if child.status is not None and child.status < 0 and child.status != -signal.SIGABRT:
            return child
    if failed[0].status == 2:
        return min((child for child in failed if child.status == 2), key=lambda c: c.index)
    return failed[0]


def _report(culprit: _Child, processes: int) -> None:
    status = culprit.status or 0
    if culprit.reader is not None:
        culprit.reader.join(1.0)  # not longer: what it started may hold the pipe open
    if status == 2 and culprit.index == 0:
        return  # it has printed the user's mistake itself
    if culprit.index != 0 and status != 2:
        for line in list(culprit.tail):
            _say(f"[{culprit.index}] {line}")
    name = f"process {culprit.index} of {processes} (pid {culprit.process.pid})"
    if status < 0:
        _say(f"error: {name} was killed by {signal.Signals(-status).name}; the others were ended")
        return
    if culprit.index == 0:
        reason = "its error is above"
    else:
        reason = last_error(list(culprit.tail))
    _say(f"error: {name} ended with status {status}: {reason}")


def last_error(lines: list[str]) -> str:
    """Of what a process printed: the last line that looks like an exception's, else the last one
    that says anything."""
    said = [line for line in lines if line.strip()]
    errors = [
        line for line in said if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error: ", line)
    ]
    return (errors or said or ["it said nothing"])[-1].removeprefix("error: ")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
