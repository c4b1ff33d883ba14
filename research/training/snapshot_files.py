"""Files that hold a training state in the memory of hosts: names, headers, and what is complete.

A snapshot is of one step of one generation. Every process would write the arrays it holds; of those
on one host that hold the same, one writes. A file is

    8 bytes, little endian    length of the header
    header                    JSON: what the file holds, and what all files together must
    arrays                    their bytes, one after the other, at the offsets that the header gives

and has its name only when it is whole. It lies in `/dev/shm`, which outlives processes. Needs no
JAX: supervisors read headers, too.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

NAME = re.compile(r"g(\d+)-s(\d+)-r(\d+)\.snapshot")

LONGEST_HEADER = 2**28


class Held(NamedTuple):
    """A file of a snapshot."""

    generation: int
    step: int
    rank: int
    part: str
    """Of what the file holds: files of equal part hold the same."""
    parts: tuple[str, ...]
    """All that the state consists of."""
    identity: str
    """Of the run."""
    path: Path

    @property
    def at(self) -> tuple[int, int]:
        """Later is larger."""
        return self.step, self.generation


def memory() -> Path:
    """Where files lie in memory: `/dev/shm`, or the folder of temporary files where there is
    none."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def folder_of(identity: str, host: str) -> Path:
    """The snapshots that `host` keeps of the run of that identity."""
    return memory() / f"research-{identity}-{re.sub(r'[^A-Za-z0-9.-]', '_', host)}"


def name_of(generation: int, step: int, rank: int) -> str:
    """Of a whole file."""
    return f"g{generation}-s{step}-r{rank}.snapshot"


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the arrays begin (bytes). Raises OSError or ValueError for a file that
    is none of ours."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < LONGEST_HEADER:
            raise ValueError(f"{path} has no header")
        return json.loads(file.read(length)), 8 + length


def held(folder: Path) -> list[Held]:
    """The whole files in a folder; those that cannot be read are passed over."""
    found = []
    for path in folder.glob("*.snapshot") if folder.is_dir() else []:
        if not (match := NAME.fullmatch(path.name)):
            continue
        try:
            header, _ = read_header(path)
            generation, step, rank = map(int, match.groups())
            parts, identity = tuple(header["parts"]), header["identity"]
            found.append(Held(generation, step, rank, header["part"], parts, identity, path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def complete(files: Iterable[Held]) -> list[tuple[int, int]]:
    """The (step, generation) of snapshots that have all their parts, newest first."""
    there: dict[tuple[int, int], set[str]] = {}
    wanted: dict[tuple[int, int], set[str]] = {}
    for file in files:
        there.setdefault(file.at, set()).add(file.part)
        wanted[file.at] = set(file.parts)
    return sorted((at for at in there if there[at] >= wanted[at]), reverse=True)


def forget(folder: Path, generation: int) -> None:
    """Removes what nobody will need once `generation` has three whole snapshots here: what is
    older than these."""
    files = held(folder)
    whole = [at for at in complete(files) if at[1] == generation]
    for file in files:
        if len(whole) > 2 and (file.generation < generation or file.at < whole[2]):
            file.path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Removes the folder and its files."""
    for path in folder.glob("*") if folder.is_dir() else []:
        path.unlink(missing_ok=True)
    if folder.is_dir():
        os.rmdir(folder)
