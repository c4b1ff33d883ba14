"""Snapshots of the state in host memory: taken often, read by the processes that come after us.

A step that is due copies the arrays of this process into a file of `/dev/shm`, which is as fast as
memory, and survives this process. Whoever starts next, on any mesh, puts its arrays together from
the files (see `snapshot_files`).
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.parallel import processes
from research.parallel.supervision import tell
from research.training import snapshot_files
from research.training.snapshot_files import Held

Tree = Any
Box = tuple[tuple[int, int], ...]
"""Of an array: from and to along each dimension."""


class Snapshots:
    """The snapshots of this process."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        every: int,
        generation: int = 0,
        hosts: tuple[str, ...] = (),
    ):
        """`hosts` names the host of every process, `every` the steps between two snapshots."""
        self.folder = folder
        self.every = every
        self._identity, self._generation = identity, generation
        self._hosts = hosts or ("",) * processes.count()
        self._rank = processes.index()
        # Processes are at most three steps apart: so many snapshots hold one that all have.
        self._keep = 2 + 3 // max(every, 1)
        self._files: deque[Path] = deque()
        self._plan: _Plan | None = None
        self._full = False

    @classmethod
    def from_environment(cls, identity: str, every: int) -> "Snapshots | None":
        """As a supervisor wants them; None without one."""
        place = os.environ.get("RESEARCH_HOST")
        if place is None:
            return None
        hosts = tuple(json.loads(os.environ["RESEARCH_HOSTS"]))
        folder = snapshot_files.folder_of(identity, place)
        return cls(folder, identity, every, int(os.environ["RESEARCH_GENERATION"]), hosts)

    def due(self, step: int) -> bool:
        """Whether a snapshot is taken after `step`."""
        return self.every > 0 and step % self.every == 0

    def save(self, step: int, state: Tree, warn: Callable[[str], None] = lambda line: None) -> None:
        """Copies what this process holds of `state` into memory; returns when it is there.

        Where memory is full, tells so once, and the run goes on with fewer snapshots.
        """
        if self._plan is None:
            self._plan = _Plan(state, self._hosts)
        plan = self._plan
        if not plan.writes:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f".g{self._generation}-r{self._rank}.part"
        if len(self._files) >= self._keep and (oldest := self._files.popleft()).exists():
            os.replace(oldest, part)  # pages that are there already need not be made anew
        elif not self._has_space(plan, warn):
            return
        header = json.dumps(
            {
                "identity": self._identity,
                "step": step,
                "part": plan.part,
                "parts": plan.parts,
                "leaves": plan.leaves,
            }
        ).encode()
        whole = self.folder / snapshot_files.name_of(self._generation, step, self._rank)
        with open(part, "r+b" if part.exists() else "wb", buffering=0) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for leaf, boxes in zip(jax.tree.leaves(state), plan.boxes, strict=True):
                for array in _pieces(leaf, boxes):
                    _write(file, array)
            file.truncate(file.tell())
        os.replace(part, whole)
        self._files.append(whole)
        tell(snapshot=step)

    def _has_space(self, plan: "_Plan", warn: Callable[[str], None]) -> bool:
        free = shutil.disk_usage(self.folder).free
        if free > plan.bytes * 1.1:
            return True
        if not self._full:
            self._full = True
            warn(
                f"no room for a snapshot of {plan.bytes / 1e6:.1f} MB in {self.folder} "
                f"({free / 1e6:.1f} MB free): a failure costs the steps since the last checkpoint"
            )
        return False


def newest(folder: Path, identity: str) -> int | None:
    """Step of the newest snapshot of the run in `folder` that has all its parts."""
    files = [file for file in snapshot_files.held(folder) if file.identity == identity]
    whole = snapshot_files.complete(files)
    return whole[0][0] if whole else None


def restore(folder: Path, identity: str, step: int, abstract: Tree) -> Tree:
    """The state of the snapshot of `step`, placed as `abstract` says.

    Raises ValueError where it holds other arrays, OSError where it cannot be read.
    """
    files = [file for file in snapshot_files.held(folder) if file.identity == identity]
    at = next(at for at in snapshot_files.complete(files) if at[0] == step)
    chosen: dict[str, Held] = {file.part: file for file in files if file.at == at}
    reader = _Reader([file.path for file in chosen.values()])
    paths, tree = jax.tree_util.tree_flatten_with_path(abstract)
    if len(paths) != len(reader.leaves):
        raise ValueError(f"it holds {len(reader.leaves)} arrays, and {len(paths)} are wanted")
    leaves: list[Any] = []
    for i, (path, like) in enumerate(paths):
        shape, dtype = reader.leaves[i]
        if shape != tuple(like.shape) or dtype != str(like.dtype):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is {dtype}{list(shape)} there and "
                f"{like.dtype}{list(like.shape)} in this config"
            )

        def part(index: Any, i: int = i, like: Any = like) -> np.ndarray:
            return reader.read(i, _box(index, like.shape))

        if isinstance(like, np.ndarray):
            leaves.append(reader.read(i, tuple((0, size) for size in shape)))
            continue
        leaves.append(jax.make_array_from_callback(like.shape, like.sharding, part))
    # What was read lies in memory of the files, which are written to again.
    return jax.block_until_ready(jax.tree_util.tree_unflatten(tree, leaves))


class _Plan:
    """Which process writes what; the same for every snapshot of a generation."""

    def __init__(self, state: Tree, hosts: tuple[str, ...]):
        leaves = jax.tree.leaves(state)
        held: list[list[list[Box]]] = [[] for _ in hosts]  # by process and leaf
        for leaf in leaves:
            boxes: list[set[Box]] = [set() for _ in hosts]
            for process, box in _held(leaf):
                boxes[process].add(box)
            for process, its in enumerate(boxes):
                held[process].append(sorted(its))
        names = [hashlib.sha256(json.dumps(each).encode()).hexdigest()[:12] for each in held]
        rank = processes.index()
        self.part = names[rank]
        self.parts = sorted(set(names))
        same = zip(hosts, names, strict=True)
        self.writes = list(same).index((hosts[rank], self.part)) == rank
        self.boxes = held[rank]
        self.leaves: list[dict[str, Any]] = []
        self.bytes = 0
        for leaf, boxes_of_leaf in zip(leaves, self.boxes, strict=True):
            pieces = []
            for box in boxes_of_leaf:
                pieces.append([box, self.bytes])
                size = int(np.prod([to - begin for begin, to in box], dtype=np.int64))
                self.bytes += size * leaf.dtype.itemsize
            described = {"shape": leaf.shape, "dtype": str(leaf.dtype), "pieces": pieces}
            self.leaves.append(described)


class _Reader:
    """Arrays out of the files of one snapshot."""

    def __init__(self, paths: list[Path]):
        self.leaves: list[tuple[tuple[int, ...], str]] = []
        self._pieces: list[list[tuple[Box, np.ndarray]]] = []
        for path in paths:
            header, begin = snapshot_files.read_header(path)
            mapped = np.memmap(path, np.uint8, "r", begin) if path.stat().st_size > begin else None
            if not self.leaves:
                self.leaves = [(tuple(e["shape"]), e["dtype"]) for e in header["leaves"]]
                self._pieces = [[] for _ in self.leaves]
            for pieces, described in zip(self._pieces, header["leaves"], strict=True):
                dtype = jax.numpy.dtype(described["dtype"])
                for corners, offset in described["pieces"]:
                    box = tuple((begin, to) for begin, to in corners)
                    shape = [to - begin for begin, to in box]
                    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                    raw = mapped[offset : offset + size] if mapped is not None else b""
                    if len(raw) != size:
                        raise ValueError(f"{path} is cut short")
                    pieces.append((box, np.frombuffer(raw, dtype).reshape(shape)))

    def read(self, leaf: int, box: Box) -> np.ndarray:
        """A box of an array, copied together from the pieces that overlap it."""
        (_, dtype), pieces = self.leaves[leaf], self._pieces[leaf]
        result = np.empty([to - begin for begin, to in box], jax.numpy.dtype(dtype))
        done = 0
        for corners, piece in pieces:
            lows = [max(a, b) for (a, _), (b, _) in zip(box, corners, strict=True)]
            highs = [min(a, b) for (_, a), (_, b) in zip(box, corners, strict=True)]
            if any(low >= high for low, high in zip(lows, highs, strict=True)):
                continue
            here = tuple(
                slice(lo - b, hi - b) for lo, hi, (b, _) in zip(lows, highs, box, strict=True)
            )
            there = tuple(
                slice(lo - b, hi - b) for lo, hi, (b, _) in zip(lows, highs, corners, strict=True)
            )
            result[here] = piece[there]
            done += result[here].size
        if done < result.size:
            raise ValueError(f"part {box} of array {leaf} is in none of the files")
        return result


def _held(leaf: Any) -> Iterator[tuple[int, Box]]:
    """Which process has which box of an array; one of NumPy is in a process that is alone."""
    if isinstance(leaf, np.ndarray):
        yield 0, tuple((0, size) for size in leaf.shape)
        return
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        yield device.process_index, _box(index, leaf.shape)


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _pieces(leaf: Any, boxes: list[Box]) -> list[np.ndarray]:
    """The data of this process in the order of `boxes`."""
    if isinstance(leaf, np.ndarray):
        return [leaf]
    by_box = {_box(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
    return [np.ascontiguousarray(by_box[box]) for box in boxes]


def _write(file: Any, array: np.ndarray) -> None:
    rest = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    while len(rest):
        rest = rest[file.write(rest) :]
