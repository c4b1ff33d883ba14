"""Coordination services of JAX, one a generation, each a process that was started before."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

from research.deployment.elastic.signals import unheard
from research.errors import RunError
from research.parallel.processes import HEARTBEAT_SECONDS

PATIENCE_SECONDS = 30.0
ATTEMPTS = 3


class Rendezvous:
    """The service of the present generation, and one that waits for the next. Nothing here waits:
    on a busy machine a service takes seconds to start."""

    def __init__(self) -> None:
        self._present: _Service | None = None
        self._next = _Service()
        self._wanted = ("", 0)
        self._attempts = 0

    def begin(self, host: str, processes: int) -> None:
        """Lets a service serve so many processes."""
        self._wanted, self._attempts = (host, processes), 0
        self._try()

    def address(self) -> str | None:
        """host:port where the service serves; None as long as it does not.

        Raises RunError where none can.
        """
        assert self._present is not None
        if self._present.serves:
            return self._present.address
        if self._present.fails():
            if self._attempts == ATTEMPTS:
                raise RunError(f"the coordination service could not serve {self._present.address}")
            self._try()
        return None

    def lives(self) -> bool:
        """Whether the present generation has its service."""
        return self._present is not None and self._present.lives()

    def end(self) -> None:
        """Ends the present service; its workers are gone."""
        if self._present is not None:
            self._present.end()
            self._present = None

    def close(self) -> None:
        self.end()
        self._next.end()

    def _try(self) -> None:
        """The one that waited may be dead, or stopped by a signal."""
        self.end()
        self._attempts += 1
        self._present, self._next = self._next, _Service()
        self._present.serve(*self._wanted)


class _Service:
    """A process that waits until it is told what to serve."""

    def __init__(self) -> None:
        self.address = ""
        self.serves = False
        self._since = 0.0
        with unheard():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "research.deployment.elastic.service"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )

    def serve(self, host: str, processes: int) -> None:
        self.address, self._since = _free_place(host), time.monotonic()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead
            self._process.stdin.write(f"{self.address} {processes} {HEARTBEAT_SECONDS}\n")
            self._process.stdin.flush()
        threading.Thread(target=self._listen, name="service", daemon=True).start()

    def lives(self) -> bool:
        return self._process.poll() is None

    def fails(self) -> bool:
        """Whether it will not serve."""
        late = time.monotonic() - self._since > PATIENCE_SECONDS
        return not self.serves and (late or not self.lives())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it was ended meanwhile
            self.serves = self._process.stdout.readline().strip() == "serving"


def _free_place(host: str) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
