"""What a worker and the supervisor that started it tell each other, through two pipes.

    RESEARCH_BEATS    descriptor that the worker writes to: one JSON object a line
    RESEARCH_ORDERS   descriptor that it reads its orders from, in the same form

A worker tells which step is done, what it is doing (`phase`), where its run folder lies, and why it
fails. It is asked to leave. Without a supervisor everything here is free and says nothing.
"""

import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

EVERY_SECONDS = 0.05
"""Time between two beats at least: a supervisor need not hear of every step of a fast run."""

LEAVE = "leave"
"""Order: stop at an agreed step, for the reason that comes with it."""

EXPLAIN = "explain"
"""Order: tell what a step may be waiting in."""

GROWTH = "more processes"
"""Reason to stop: the next generation is larger. What lies in memory is enough to go on from."""

MOST_WORDS = 1000
"""Characters of an explanation: a line is short enough to be written at once."""

_beats: int | None = None
_told = 0.0
_lock = threading.Lock()
_left: list[str] = []
_on_leave: Callable[[str], None] | None = None
_explain: Callable[[], str] | None = None
_stacks: Any = None


def take_pipes() -> int | None:
    """Takes both pipes out of the environment, so that what we start does not find them; returns
    the descriptor of the orders."""
    global _beats
    beats, orders = os.environ.pop("RESEARCH_BEATS", None), os.environ.pop("RESEARCH_ORDERS", None)
    if beats is None or orders is None:
        return None
    _beats = int(beats)
    return int(orders)


def supervised() -> bool:
    """Whether somebody listens."""
    return _beats is not None


def tell(**facts: Any) -> None:
    """Writes one line to the supervisor: at most 4096 bytes, so that lines of threads never mix."""
    if _beats is None:
        return
    line = json.dumps(facts).encode() + b"\n"
    with contextlib.suppress(OSError):  # it is gone: whoever follows it ends us
        os.write(_beats, line)


def beat(step: int) -> None:
    """Tells that `step` is done; of steps that follow each other fast only some."""
    global _told
    now = time.monotonic()
    if _beats is not None and now - _told >= EVERY_SECONDS:
        _told = now
        tell(step=step)


def phase(name: str, **facts: Any) -> None:
    """Tells what comes now, such as `compiling`: no step ends meanwhile."""
    global _told
    _told = 0.0  # the next step is told at once
    tell(phase=name, **facts)


def follow(orders: IO[str]) -> None:
    """Listens to the orders that come from now on."""

    def listen() -> None:
        with orders as lines:
            for line in lines:
                order = json.loads(line)
                if order.get("do") == LEAVE:
                    ask_to_leave(order["reason"])
                elif order.get("do") == EXPLAIN and _explain is not None:
                    tell(collectives=_explain()[:MOST_WORDS])

    threading.Thread(target=listen, name="orders", daemon=True).start()


def on_explain(call: Callable[[], str] | None) -> None:
    """`call()` says what a step may be waiting in; it is asked where one seems to hang, in a thread
    of its own."""
    global _explain
    _explain = call


def on_leave(call: Callable[[str], None] | None) -> None:
    """`call(reason)` when we are asked to leave: at once if we already were."""
    global _on_leave
    with _lock:
        _on_leave = call
        waiting = list(_left) if call is not None else []
    if call is not None:
        for reason in waiting:
            call(reason)


def ask_to_leave(reason: str) -> None:
    """As the order to does: what a supervisor started gets no signals."""
    with _lock:
        _left.append(reason)
        call = _on_leave
    if call is not None:
        call(reason)


def dump_stacks_to(folder: Path) -> None:
    """From now on SIGUSR1 appends the Python stack of every thread to a file of this process in
    `folder`, whatever the interpreter is stuck in."""
    global _stacks
    if not supervised() or not hasattr(signal, "SIGUSR1"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    generation, process = os.environ["RESEARCH_GENERATION"], os.environ["RESEARCH_PROCESS"]
    path = folder / f"generation-{generation}-process-{process}.txt"
    _stacks = open(path, "w", encoding="utf-8")  # noqa: SIM115 - for as long as we live
    faulthandler.register(signal.SIGUSR1, file=_stacks, all_threads=True)
