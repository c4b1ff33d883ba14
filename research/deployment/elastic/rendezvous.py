"""Coordination services of JAX, one a generation, each a process that was started before."""

import contextlib
import socket
import subprocess
import sys
import threading

from research.deployment.elastic.signals import unheard
from research.errors import RunError
from research.parallel.processes import HEARTBEAT_SECONDS

PATIENCE_SECONDS = 10.0
ATTEMPTS = 3


class Rendezvous:
    """The service of the present generation, and one that waits for the next."""

    def __init__(self) -> None:
        self._present: subprocess.Popen[str] | None = None
        self._next = self._spawn()

    def serve(self, host: str, processes: int) -> str:
        """Serves so many processes; returns host:port. Raises RunError where it cannot."""
        for _ in range(ATTEMPTS):  # the one that waited may be dead, or stopped by a signal
            self.end()
            service, self._next = self._next, self._spawn()
            self._present = service
            place = _free_place(host)
            if _serves(service, f"{place} {processes} {HEARTBEAT_SECONDS}\n"):
                return place
        raise RunError(f"the coordination service could not serve {place}")

    def lives(self) -> bool:
        """Whether the present generation has its service."""
        return self._present is not None and self._present.poll() is None

    def end(self) -> None:
        """Ends the present service; its workers are gone."""
        if self._present is not None:
            _end(self._present)
            self._present = None

    def close(self) -> None:
        self.end()
        _end(self._next)

    def _spawn(self) -> "subprocess.Popen[str]":
        with unheard():
            return subprocess.Popen(
                [sys.executable, "-m", "research.deployment.elastic.service"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )


def _free_place(host: str) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _serves(service: "subprocess.Popen[str]", order: str) -> bool:
    assert service.stdin is not None and service.stdout is not None
    timer = threading.Timer(PATIENCE_SECONDS, service.kill)
    timer.start()
    try:
        service.stdin.write(order)
        service.stdin.flush()
        return service.stdout.readline().strip() == "serving"
    except OSError:
        return False
    finally:
        timer.cancel()


def _end(service: "subprocess.Popen[str]") -> None:
    service.kill()
    service.wait()
    for stream in (service.stdin, service.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()
