"""Checkpoints by Orbax: asynchronous, atomic, restored onto any mesh.

A save copies the arrays to the host, and writes them while training goes on; the folder gets its
name only when every file of every process is there, and their digests. So a crash at any moment
leaves the checkpoints before it whole, and neither a half-written one nor one that has changed
since is ever taken for a checkpoint.
"""

import errno
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import RunError, UserError
from research.models.model import LAYERS
from research.parallel import processes
from research.parallel.processes import is_first
from research.training import digests

Tree = Any
Shape = tuple[int, ...]

SMALLEST_SLICE = 2**22
"""Bytes that a replica writes at least of an array that several hold."""


class Checkpoints:
    """The checkpoints of one run, by step."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None):
        """Keeps the newest `keep` checkpoints, and those at multiples of `keep_every` steps."""
        # Orbax narrates every file, and prints the traceback of an error that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        _write_small_arrays_whole()
        self.folder = folder
        self._unreadable: list[int] = []
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=options,
            # Else a manager that has saved nothing yet cannot tell what a checkpoint holds.
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def oldest(self) -> int | None:
        """Step of the oldest checkpoint that is kept."""
        return min(self._manager.all_steps(), default=None)

    def save(self, step: int, state: Tree) -> None:
        """Begins to save `state`; returns when its arrays may be overwritten.

        Checkpoints that `restore` passed over are dropped first: they are of this step or later
        ones, and Orbax would keep them in place of what comes now.

        Raises RunError if this or the save before could not be written.
        """
        while self._unreadable:
            self._manager.delete(self._unreadable.pop())
        if step in self._manager.all_steps():
            return

        def save() -> None:
            self._manager.wait_until_finished()
            self._check_space(step, state)
            self._saving = step
            self._manager.save(step, args=ocp.args.StandardSave(state))

        self._named(save, step)

    def wait(self) -> None:
        """Returns when the last save is complete. Raises RunError if it could not be."""
        self._named(self._manager.wait_until_finished, None)

    def close(self) -> None:
        self._manager.close()

    def restore(
        self, abstract: Tree, report: Callable[[str], None] = lambda line: None
    ) -> tuple[int, Tree]:
        """The step and state of the newest checkpoint that can be read, placed as `abstract` says.

        A checkpoint that cannot be read is passed over, and `report` is told so in one line.

        Raises UserError if there is none, or it holds another model.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise UserError(
                f"{self.folder} holds no complete checkpoint: start the run anew with "
                "`research train`"
            )
        for step in steps:
            try:
                self._check_digests(step, report)
                saved = self._check_same_tree(step, abstract)
                as_saved = _with_shapes(abstract, saved)
                state = self._manager.restore(step, args=ocp.args.StandardRestore(as_saved))
                state = _regrouped(state, abstract)
            except UserError:
                raise
            except Exception as error:  # Orbax and tensorstore raise many kinds for damaged files
                first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                report(
                    f"checkpoint {step} cannot be read ({type(error).__name__}: {first_line}); "
                    "taking the one before"
                )
                self._unreadable.append(step)
                continue
            return step, state
        raise UserError(
            f"none of the checkpoints {', '.join(map(str, steps))} in {self.folder} can be read: "
            "restore the folder from a copy, or start anew with `research train`"
        )

    def _write_digests(self) -> None:
        """Orbax calls this on process 0, when all files are there and the name is not."""
        for unnamed in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            digests.write(unnamed)

    def _check_digests(self, step: int, report: Callable[[str], None]) -> None:
        """Raises Damaged, on all processes, where one finds a file that is not what was saved; each
        reads its part of them."""
        verdict = "whole"
        try:
            part = processes.index(), processes.count()
            if not digests.check(self.folder / str(step), *part):
                report(f"checkpoint {step} has no {digests.NAME}: it is read as it is")
        except (digests.Damaged, OSError) as error:
            verdict = str(error)
        for each in processes.gathered("digests", verdict):
            if each != "whole":
                raise digests.Damaged(each)

    def _check_same_tree(self, step: int, abstract: Tree) -> dict[str, Shape]:
        """The shapes of the checkpoint's arrays by name.

        Raises UserError where they differ from `abstract` in name or shape; layers may be in other
        rounds of a pipeline."""
        metadata = self._manager.item_metadata(step)
        saved = {
            _path(p): tuple(leaf.shape)
            for p, leaf in jax.tree_util.tree_leaves_with_path(metadata.tree)
        }
        wanted = {_path(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        if not saved:
            raise ValueError("its metadata lists no arrays")
        for name in sorted(saved.keys() | wanted.keys()):
            here, there = wanted.get(name), saved.get(name)
            if here == there or (here and there and _same_layers(name, here, there)):
                continue
            raise UserError(
                f"checkpoint {step} in {self.folder} is of another model: {name} "
                f"{_shape('has shape', there)} there and {_shape('has shape', here)} in this "
                "config: resume with the config that the run was begun with"
            )
        return saved

    def _check_space(self, step: int, state: Tree) -> None:
        """Raises RunError where the disk has less room than `state` takes.

        A disk that fills up during a save is noticed as well, but not before the threads of
        tensorstore have printed their tracebacks.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed and is_first():
            raise self._full(step, f" ({needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free)")

    def _named(self, action: Callable[[], Any], step: int | None) -> None:
        try:
            action()
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise self._full(step) from error

    def _full(self, step: int | None, numbers: str = "") -> RunError:
        kept = self._manager.all_steps(read=True)
        last = f"the last good one is of step {max(kept)}" if kept else "there is none before it"
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return RunError(
            f"no space left on the disk of {self.folder}{numbers}: {which} could not be written, "
            f"{last}; free some space and go on with `research resume {self.folder.parent}`"
        )


def _write_small_arrays_whole() -> None:
    """Lets one replica write an array that all have, if it is small.

    Orbax has every replica write a slice of it, and compiles a program for each slice: seconds at
    the first save of the smallest model on 8 devices.
    """
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SMALLEST_SLICE)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means that the disk (or the quota) is full, whoever raised it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error).lower()
    return "no space left on device" in words or "disk quota exceeded" in words


def _same_layers(name: str, here: Shape, there: Shape) -> bool:
    """Whether both shapes are of layers in the same order, [layers, ...] or [rounds, layers a
    round, ...], perhaps with [replicas] in front."""
    if LAYERS not in name.split("."):
        return False
    one, other = list(here), list(there)
    while one and other and one[-1] == other[-1]:
        one.pop(), other.pop()
    if min(len(one), len(other)) > 1 and one[0] == other[0]:
        del one[0], other[0]
    return len(one) <= 2 and len(other) <= 2 and math.prod(one) == math.prod(other)


def _with_shapes(abstract: Tree, shapes: dict[str, Shape]) -> Tree:
    """`abstract` as the arrays were saved; layers in other rounds lie over the same mesh axis."""

    def reshaped(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = shapes[_path(path)]
        if shape == leaf.shape:
            return leaf
        more = len(shape) - len(leaf.shape)  # -1, 0 or 1
        axes = [None] * more + list(leaf.sharding.spec)[max(-more, 0) :]
        sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*axes))
        try:
            sharding.shard_shape(shape)
        except ValueError:  # does not divide: whole, for a moment
            sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(reshaped, abstract)


def _regrouped(state: Tree, abstract: Tree) -> Tree:
    """Arrays as they were saved, as `abstract` wants them."""

    def regroup(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.shape == like.shape:
            return leaf
        return jax.jit(lambda x: x.reshape(like.shape), out_shardings=like.sharding)(leaf)

    return jax.tree.map(regroup, state, abstract)


def _path(path: tuple[Any, ...]) -> str:
    """`parameters.blocks.mlp.up.kernel` for a path of a tree, however its nodes name their
    parts."""
    parts = (
        getattr(key, "name", None) or getattr(key, "key", getattr(key, "idx", "")) for key in path
    )
    return ".".join(str(part) for part in parts)


def _shape(verb: str, shape: Any) -> str:
    return "is missing" if shape is None else f"{verb} {tuple(shape)}"
