"""Which mesh a run takes when the number of its processes changes. Needs no JAX.

A mesh of P processes with D devices each has P·D devices. When P changes,

1. `stage`, `expert`, `context` and `tensor` stay: they say where the parts of a model lie.
2. One axis is elastic and takes the devices that are left: `data`, where it is split or -1; else
   `replica`, where whole models lie on it; else `fsdp`.
3. `replica` takes only sizes that the number of replicas divides by, since each device has equally
   many.
4. `batch / microbatches` has to divide over `replica × data × fsdp × expert` (or the batch over
   these, the replicas of a device and the microbatches), as it has to on any mesh.
5. Of the processes that are there, as many take part as possible, up to the most that was asked
   for; the others wait as spares.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from research.errors import UserError

OUTER = ("data", "replica", "fsdp")
"""Axes that may change, the first that is split."""


@dataclass(frozen=True)
class Declared:
    """What an experiment says of its mesh."""

    mesh: Mapping[str, int]
    """Devices along every axis; one may be -1."""

    replicas: int | None
    """Replicas in all (None: as many as `replica` has devices)."""

    devices: int
    """Devices of every process."""

    batch: int | None = None
    """Examples of a batch (None: the algorithm has none)."""

    microbatches: int = 1


@dataclass(frozen=True)
class Layout:
    """Processes that take part, and the mesh over their devices."""

    processes: int
    mesh: dict[str, int]

    def words(self) -> list[str]:
        """As the command line says it."""
        return [word for axis, n in self.mesh.items() for word in (f"--mesh.{axis}", str(n))]

    def __str__(self) -> str:
        split = [f"{axis} {size}" for axis, size in self.mesh.items() if size > 1]
        return " × ".join(split) or "1 device"


def elastic_axis(mesh: Mapping[str, int]) -> str:
    """The axis that changes with the number of processes."""
    free = [axis for axis, size in mesh.items() if size == -1]
    if free:
        return free[0]
    return next((axis for axis in OUTER if mesh[axis] > 1), "data")


def largest(declared: Declared, there: int, least: int, most: int) -> Layout:
    """The layout of the most processes, out of `there`, that some mesh fits.

    Raises UserError, with the numbers, where none of `least` or more fits.
    """
    axis = elastic_axis(declared.mesh)
    kept = {name: size for name, size in declared.mesh.items() if name != axis}
    fixed = prod(kept.values())
    for processes in range(min(there, most), max(least, 1) - 1, -1):
        devices = processes * declared.devices
        if devices % fixed:
            continue
        size = devices // fixed
        if axis == "replica" and _replicas(declared) % size:
            continue
        mesh = {name: size if name == axis else declared.mesh[name] for name in declared.mesh}
        if _batch_divides(declared, mesh):
            return Layout(processes, mesh)
    asked = " × ".join(f"{name} {size}" for name, size in kept.items() if size > 1)
    replicas = f", {_replicas(declared)} replicas" if axis == "replica" else ""
    replicas += f", batch {declared.batch}" if declared.batch else ""
    replicas += f" / {declared.microbatches} microbatches" if declared.microbatches > 1 else ""
    raise UserError(
        f"no layout of {least} to {min(there, most)} processes with {declared.devices} "
        f"device{'s' if declared.devices > 1 else ''} each fits: "
        f"{asked or 'the other axes'} = {fixed} stays and only {axis} changes{replicas}; "
        "choose other --mesh sizes, or another --elastic"
    )


def _batch_divides(declared: Declared, mesh: Mapping[str, int]) -> bool:
    if declared.batch is None:
        return True
    parts = prod(mesh[axis] for axis in ("replica", "data", "fsdp", "expert"))
    seats = max((declared.replicas or 1) // mesh["replica"], 1)
    microbatches = declared.microbatches
    if seats == 1 and declared.batch // microbatches % parts == 0:
        return True
    return declared.batch % (parts * seats * microbatches) == 0


def _replicas(declared: Declared) -> int:
    return declared.replicas or max(declared.mesh["replica"], 1)
