"""The device mesh: every device of the run, named by what is split over it.

Axes run from the slowest links (outermost) to the fastest (innermost), so that the chatty kinds of
parallelism land on devices that sit close together.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
from jax.sharding import AxisType, Mesh

from research.errors import UserError

AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis; their product is the number of devices.

    One axis may be -1: the devices that the others leave.
    """

    replica: int = 1
    """Whole model copies that may differ (devices)."""

    stage: int = 1
    """Pipeline stages: groups of layers (devices)."""

    data: int = -1
    """Parts of the batch; gradients are averaged every step (devices; -1: what is left)."""

    fsdp: int = 1
    """Parts of the batch and of every parameter and its optimizer state (devices)."""

    expert: int = 1
    """Parts of the experts of a mixture (devices)."""

    context: int = 1
    """Parts of the sequence (devices)."""

    tensor: int = 1
    """Parts of the heads and hidden units of every layer (devices)."""

    @property
    def named_devices(self) -> int:
        """The product of the sizes, -1 taken as 1: the fewest devices that can be laid out so."""
        return math.prod(abs(size) for size in asdict(self).values())

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of every axis when `devices` devices are shared out.

        Raises UserError where the product cannot be `devices`.
        """
        sizes = asdict(self)
        wrong = [f"--mesh.{axis} {size}" for axis, size in sizes.items() if size < 1 and size != -1]
        if wrong:
            raise UserError(
                f"{', '.join(wrong)}: a mesh axis has at least 1 device, or -1 for the rest"
            )
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1:
            raise UserError(
                f"mesh axes {' and '.join(free)} are both -1: only one can take the devices "
                "that are left"
            )
        fixed = math.prod(size for size in sizes.values() if size != -1)
        asked = " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "data 1"
        if free:
            if fixed > devices or devices % fixed:
                raise UserError(
                    f"mesh {asked} = {fixed} does not divide the {devices} devices that are here: "
                    f"use sizes whose product divides {devices}, or {_more_devices(fixed)}"
                )
            sizes[free[0]] = devices // fixed
        elif fixed != devices:
            raise UserError(
                f"mesh {asked} = {fixed} devices, but {devices} "
                f"{'is' if devices == 1 else 'are'} here: "
                f"set one axis to -1 to take what is there, or {_more_devices(fixed)}"
            )
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (default: all of the run), every axis left to XLA's partitioner.

        Raises UserError where the sizes do not fit the number of devices.
        """
        devices = jax.devices() if devices is None else list(devices)
        sizes = self.sizes(len(devices))
        return jax.make_mesh(
            tuple(sizes[axis] for axis in AXES),
            AXES,
            axis_types=(AxisType.Auto,) * len(AXES),
            devices=devices,
        )


def _more_devices(wanted: int) -> str:
    return f"make {wanted} virtual ones with --cpu-devices {wanted}"


def platform() -> str:
    """What is compiled for: `cpu`, `gpu` or `tpu`. The devices of the mesh in force decide, which
    may be those of a machine that is elsewhere; without a mesh the default backend."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend()
    return str(mesh.abstract_device.platform)


def describe(mesh: Mesh) -> str:
    """The mesh in words, for example `data 2 × tensor 4`."""
    split = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return " × ".join(split) or "1 device"
