"""`research launch --elastic`: this host's agent, and the controller if the rendezvous is here."""

import errno
import fcntl
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import IO

from research.deployment.elastic.agent import Agent
from research.deployment.elastic.controller import Controller
from research.deployment.elastic.options import Options, place_of
from research.deployment.elastic.signals import SIGNALS
from research.errors import UserError
from research.parallel.launch import check_command


def launch_elastic(options: Options, program: list[str] | None = None) -> int:
    """Trains with the processes that are there, until the run is done; returns the exit status: 0,
    2 for a user's mistake, `Preempted.STATUS` if it was stopped and saved, else 1.

    Raises UserError for what makes no sense.
    """
    check_command(options.command)
    if options.processes < 1:
        raise UserError(f"--processes is {options.processes}: it must be 1 or more")
    if options.rendezvous is None and options.processes < options.least:
        raise UserError(
            f"--processes {options.processes} are fewer than the {options.least} of --elastic "
            f"{options.least}:{options.most}: give more, or a --rendezvous where other hosts come"
        )
    held = _hold(options)
    controller = _controller(options)
    if options.rendezvous is not None:
        address = place_of(options.rendezvous)
    else:
        assert controller is not None
        address = ("127.0.0.1", controller.port)
    lifeline, our_end = os.pipe()
    agent = Agent(options, address, program or [sys.executable, "-m", "research"], lifeline)
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                previous[number] = signal.signal(
                    number, lambda number, _: agent.events.put(("signal", number))
                )
    try:
        return agent.serve()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(lifeline)
        os.close(our_end)
        if controller is not None:
            controller.close()
        if held is not None:
            held.close()


def _hold(options: Options) -> IO[str] | None:
    """The lock of the run folder for launches that resume; it goes with this process. Workers hold
    one of their own, but not between two generations.

    Raises UserError if another launch of this host has it.
    """
    if options.command[0] != "resume" or not Path(options.command[1]).is_dir():
        return None
    lock = open(Path(options.command[1]) / f".launch-{options.host}", "a+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(
            f"another launch on {options.host} has {options.command[1]}: wait for it or stop it"
        ) from None
    return lock


def _controller(options: Options) -> Controller | None:
    """The controller, where the rendezvous is an address of this host that nobody serves yet."""
    if options.rendezvous is None:
        return Controller(options, "127.0.0.1", 0)
    host, port = place_of(options.rendezvous)
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
        return Controller(options, str(address), port)
    except socket.gaierror as error:
        raise UserError(
            f"--rendezvous {options.rendezvous}: host {options.host} cannot find the address of "
            f"{host} ({error.strerror})"
        ) from error
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return None  # another host's, or another launch serves it
        raise UserError(
            f"--rendezvous {options.rendezvous}: host {options.host} cannot listen there "
            f"({error.strerror})"
        ) from error
