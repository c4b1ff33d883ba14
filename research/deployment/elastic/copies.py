"""Snapshots that travel: a host keeps a copy of another's, and fetches what it lacks.

One connection carries one file: a line of JSON says which (`put` or `get`, its name and bytes),
then its bytes follow. No line, no file: names that are none of a snapshot are refused.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from research.training import snapshot_files

CHUNK = 2**20
PATIENCE_SECONDS = 20.0
"""Of a connection that carries nothing."""


class CopyServer:
    """Takes copies of other hosts' snapshots into `folder()`, and hands out ours."""

    def __init__(self, address: str, folder: Callable[[], Path | None]):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = socket.create_server((address, 0), family=family)
        self._folder = folder
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, name="copies", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        folder = self._folder()
        with link, contextlib.suppress(OSError, ValueError, KeyError):
            link.settimeout(PATIENCE_SECONDS)
            with link.makefile("rwb") as stream:
                asked = json.loads(stream.readline(4096))
                name = asked["name"]
                if folder is None or not snapshot_files.NAME.fullmatch(name):
                    return
                if asked["do"] == "put":
                    _receive(stream, folder, name, int(asked["bytes"]))
                    stream.write(b"ok\n")
                elif asked["do"] == "get":
                    _send(stream, folder / name)


def put(address: str, port: int, path: Path) -> bool:
    """Gives a copy of the file to another host; returns whether it has it now."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), PATIENCE_SECONDS) as link,
        link.makefile("rwb") as stream,
        open(path, "rb") as file,
    ):
        content = file.read()
        if not path.exists():  # written over meanwhile
            return False
        asked = {"do": "put", "name": path.name, "bytes": len(content)}
        stream.write(json.dumps(asked).encode() + b"\n" + content)
        stream.flush()
        return stream.readline() == b"ok\n"
    return False


def get(address: str, port: int, name: str, folder: Path) -> bool:
    """Fetches a file of another host; returns whether it is here now."""
    with (
        contextlib.suppress(OSError, ValueError),
        socket.create_connection((address, port), PATIENCE_SECONDS) as link,
        link.makefile("rwb") as stream,
    ):
        stream.write(json.dumps({"do": "get", "name": name}).encode() + b"\n")
        stream.flush()
        _receive(stream, folder, name, int(stream.readline(64)))
        return True
    return False


def _send(stream, path: Path) -> None:  # type: ignore[no-untyped-def]
    content = path.read_bytes()
    if not path.exists():  # written over meanwhile
        raise OSError(f"{path} is gone")
    stream.write(f"{len(content)}\n".encode() + content)


def _receive(stream, folder: Path, name: str, size: int) -> None:  # type: ignore[no-untyped-def]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f".{name}.receiving"
    with open(part, "wb") as file:
        while size:
            chunk = stream.read(min(size, CHUNK))
            if not chunk:
                raise OSError("the connection ended in the middle of a file")
            file.write(chunk)
            size -= len(chunk)
    part.replace(folder / name)
