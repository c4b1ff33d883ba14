"""Lines of JSON over a socket, between the agents of hosts and the controller of a run."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

LONGEST = 2**22
"""Bytes of a line at most: what is longer comes from somebody else."""


class Connection:
    """One end of a connection; a thread hands every message to `receive`, and None at its end."""

    def __init__(
        self, link: socket.socket, receive: Callable[["Connection", Message | None], None]
    ):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(None)
        self._link = link
        self._receive = receive
        self._lock = threading.Lock()
        self.address: str = link.getsockname()[0]
        """Of this end: how the other side reaches this host."""
        self.peer: str = link.getpeername()[0]
        threading.Thread(target=self._read, name="connection", daemon=True).start()

    def send(self, **message: Any) -> None:
        """Sends a message; one that cannot be sent is lost, and `receive` hears of the end."""
        with self._lock, contextlib.suppress(OSError):
            self._link.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._link.makefile("rb") as lines:
            while line := lines.readline(LONGEST):
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                self._receive(self, message)
        self._receive(self, None)
