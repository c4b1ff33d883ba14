"""What is tried before the first step, so that it fails with a sentence and not in the middle."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import UserError
from research.parallel.mesh import AXES
from research.parallel.processes import count, gathered
from research.parallel.supervision import phase, tell


def check_meeting(mesh: Mesh) -> None:
    """Of several processes: whether each has as many devices, and a small sum over all of them
    comes out right on each.

    Raises UserError, naming the process, where not.
    """
    tell(devices=jax.local_device_count())
    if count() == 1:
        return
    phase("adding a number over all devices")
    devices = [int(n) for n in gathered("devices", str(jax.local_device_count()))]
    odd = [i for i, n in enumerate(devices) if n != devices[0]]
    if odd:
        raise UserError(
            f"process {odd[0]} has {devices[odd[0]]} devices, and process 0 has {devices[0]}: "
            "every process needs as many, so leave the larger hosts' others out"
        )
    over = NamedSharding(mesh, PartitionSpec(AXES))
    ones = jax.make_array_from_callback(
        (mesh.size,), over, lambda index: np.ones(mesh.size, np.float32)[index]
    )
    whole = NamedSharding(mesh, PartitionSpec())
    total = float(jax.jit(lambda x: x.sum(), out_shardings=whole)(ones))
    if total != mesh.size:
        raise UserError(
            f"a sum of ones over {mesh.size} devices came out as {total:g}: the collectives of "
            "this network or driver do not work; look at their logs (NCCL_DEBUG=INFO)"
        )


def check_room(folder: Path, state: Any) -> None:
    """Whether every process finds room for a checkpoint of `state` (arrays, or their shapes) on the
    disk of `folder`. A new one is whole before an old one goes: a run that goes on needs it, too.

    Raises UserError, naming the host, where not.
    """
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    host = os.environ.get("RESEARCH_HOST", platform.node())
    complaint = (
        f"a checkpoint of this run takes {needed / 1e6:,.1f} MB, and host {host} has "
        f"{free / 1e6:,.1f} MB free for {folder}: free some space, or train elsewhere by "
        "--run.directory"
    )
    for each in gathered("room", complaint if free < needed else ""):
        if each:
            raise UserError(each)
