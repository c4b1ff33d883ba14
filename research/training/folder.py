"""The run folder: all that is needed to know what a run was, and to go on with it.

config.json        the resolved experiment
environment.json   versions, devices, git commit, command
data.json          name and digest of the data
vocabulary.json    of a text run
metrics.jsonl      one object a logged step
checkpoints/       Orbax
tensorboard/       events
generations.jsonl  of an elastic run: its processes and meshes, and what ended them
stacks/            of a hung run: where every process was
"""

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from research.errors import UserError


def new_place(name: str) -> str:
    """Folder of a run that was given none."""
    return f"runs/{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.stacks = path / "stacks"

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """The folder of a run that was begun. Raises UserError where there is none."""
        if not (path / "config.json").is_file():
            what = "is no run folder (it has no config.json)" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}: give the folder that `research train` printed")
        return cls(path)

    def create(self) -> None:
        """Makes the folder. Raises UserError where a run lives there already, or none can."""
        if (self.path / "config.json").exists():
            raise UserError(
                f"{self.path} already holds a run: go on with `research resume {self.path}`, "
                "or choose another --run.directory"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {self.path} ({error.strerror}): "
                "choose another --run.directory"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the lock goes with the process, however it ends.

        Raises UserError, with its number, if another process holds it.
        """
        with open(self.path / ".lock", "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise UserError(
                    f"{self.path} is in use by process {holder}: wait for it or stop it, "
                    "or choose another --run.directory"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def identity(self) -> str:
        """What tells this run from any other, also from one in a folder of the same name."""
        path = self.path / ".identity"
        if not path.exists():
            write_whole(path, secrets.token_hex(8))
        return path.read_text()

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Writes `<name>.json` whole or not at all."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.path / f"{name}.json", text)

    def write_again(self, environment: dict[str, Any]) -> None:
        """Writes the environment of a run that is gone on with; those before stay, as `earlier`."""
        before = self.read("environment")
        history = [*before.pop("earlier", []), before]
        self.write("environment", {**environment, "earlier": history})

    def leave_no_trace(self) -> None:
        """Removes what `create` and `locked` have made; what else lies there is not ours."""
        with contextlib.suppress(OSError):
            (self.path / ".lock").unlink()
            self.path.rmdir()

    def read(self, name: str) -> dict[str, Any]:
        """The content of `<name>.json`. Raises UserError where it is missing or broken."""
        path = self.path / f"{name}.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path} is missing: the run folder is not whole") from None
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON ({error}): the run folder is damaged"
            ) from None
