"""Compiling a program once: for all processes, and for the next start.

JAX keeps compiled programs in a folder, which process 0 writes and all processes read. But the name
of a program there has a fingerprint of the devices in it that on CPUs differs from process to
process (JAX 0.10 to 0.12), so that none but process 0 ever finds one. Here all of them call it by
the same name; and on one machine the others wait until process 0 has compiled it.
"""

import platform
from pathlib import Path
from typing import Any

import jax

from research.parallel.processes import barrier, count, is_first, rendezvous

COMPILE_SECONDS = 3600
"""How long a process waits for the others to compile what it has already."""


def keep_programs(folder: Path) -> None:
    """Keeps compiled programs in `folder` from now on. Several processes have met before."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if count() > 1 and jax.default_backend() == "cpu":
        from jax._src import cache_key

        cache_key._hash_accelerator_config = _hash_devices  # type: ignore[assignment]


def compile_together(lowered: Any) -> Any:
    """The compiled program of `lowered` (of `jax.jit(...).lower(...)`), once every process has it:
    whoever runs a collective first gives the others 30 s to come to it."""
    together = _share_a_machine()
    if together and not is_first():
        barrier("compiled by the first", COMPILE_SECONDS)
    compiled = lowered.compile()
    if together and is_first():
        barrier("compiled by the first", COMPILE_SECONDS)
    barrier("compiled", COMPILE_SECONDS)
    return compiled


def _share_a_machine() -> bool:
    """Whether other processes of this machine find what process 0 has compiled."""
    joined = rendezvous()
    if joined is None or not jax.config.values["jax_compilation_cache_dir"]:
        return False
    return joined.coordinator_address.startswith(("127.", "localhost:"))


def _hash_devices(hash_object: Any, devices: Any) -> None:
    """Takes what programs depend on, and not which of the devices are here."""
    where = [(device.id, device.process_index, device.device_kind) for device in devices.flat]
    hash_object.update(repr((where, _processor())).encode())


def _processor() -> str:
    """What its instructions are: a folder may be shared by hosts that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    known = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(sorted(set(known)))
