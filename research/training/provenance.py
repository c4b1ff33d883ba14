"""Where a run was made: versions, devices, code and command."""

import contextlib
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from research.parallel.processes import count

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "reigen")


def environment(seed: int) -> dict[str, Any]:
    """Versions, devices, commit, command and seed: what a run can be repeated from."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    devices = jax.devices()
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions,
        "platform": platform.platform(),
        "host": platform.node(),
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hardware": hardware(),
        "processes": count(),
        "seed": seed,
        "git": _git_commit(),
    }


def hardware() -> str:
    """The machine in a line: processor, cores this process may use, and devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = jax.devices()
    plural = "s" if len(devices) > 1 else ""
    return f"{_processor()}, {cores} cores; {len(devices)} {devices[0].device_kind} device{plural}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> dict[str, Any] | None:
    """Commit of the code, and whether files differ from it; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
