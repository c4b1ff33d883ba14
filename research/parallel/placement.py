"""Which process of how many this is, and where they meet, as whoever placed them here says.

    RESEARCH_COORDINATOR, RESEARCH_PROCESSES, RESEARCH_PROCESS    `research launch`, our templates
    SLURM_STEP_NUM_TASKS, SLURM_PROCID, SLURM_STEP_NODELIST       `srun`
    OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_RANK                    `mpirun` of Open MPI
    JOB_COMPLETION_INDEX                                          an Indexed Job of Kubernetes
    TPU_WORKER_HOSTNAMES, TPU_WORKER_ID                           the hosts of a TPU slice

The first that is there counts. What says nothing of several processes says that this one is alone.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from research.errors import UserError

PORTS = (61440, 4096)
"""The first of the ports that the number of a job chooses from, and how many there are."""

TPU_PORT = 8476


@dataclass(frozen=True)
class Place:
    """Of one process."""

    coordinator: str
    """host:port where process 0 serves the rendezvous."""
    processes: int
    process: int
    host: str | None = None
    """Name of this host, where it is known."""


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What the environment says; None where this process is alone.

    Raises UserError for variables that make no sense.
    """
    for read in (_own, _slurm, _open_mpi, _tpu):
        found = read(environment)
        if found is not None:
            return found if found.processes > 1 or read is _own else None
    return None


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts, as in `gpu[03-05,9],login`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}: it names no host")
    return match[1] + (match[2] or "")


def _own(environment: Mapping[str, str]) -> Place | None:
    coordinator = environment.get("RESEARCH_COORDINATOR")
    if not coordinator:
        return None
    # Kubernetes knows the one number, and a manifest the other.
    index = environment.get("RESEARCH_PROCESS", environment.get("JOB_COMPLETION_INDEX", ""))
    numbers = []
    for name, value in (
        ("RESEARCH_PROCESSES", environment.get("RESEARCH_PROCESSES", "")),
        ("RESEARCH_PROCESS", index),
    ):
        if not value.isdecimal():
            raise UserError(
                f"RESEARCH_COORDINATOR is set, but {name} is {value!r}: it must be a number"
            )
        numbers.append(int(value))
    processes, process = numbers
    if process >= processes:
        raise UserError(
            f"RESEARCH_PROCESS is {process}, but RESEARCH_PROCESSES is {processes}: processes are "
            "numbered from 0"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"RESEARCH_COORDINATOR is {coordinator!r}: it must be host:port")
    return Place(coordinator, processes, process)


def _slurm(environment: Mapping[str, str]) -> Place | None:
    # Of a step that `srun` started; the script of a job has SLURM_NTASKS too, and is one process.
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    host = first_host(environment.get("SLURM_STEP_NODELIST", "localhost"))
    return Place(
        f"{host}:{_port(environment.get('SLURM_JOB_ID', '0'))}",
        _number(environment, "SLURM_STEP_NUM_TASKS"),
        _number(environment, "SLURM_PROCID"),
        environment.get("SLURMD_NODENAME"),
    )


def _open_mpi(environment: Mapping[str, str]) -> Place | None:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or [fe80::1] addresses of the first host
    uri = environment.get("OMPI_MCA_orte_hnp_uri", environment.get("PMIX_SERVER_URI41", ""))
    address = re.search(r"tcp4?://([^,:/]+)", uri)
    job = re.match(r"\D*(\d+)", uri)
    return Place(
        f"{address[1] if address else '127.0.0.1'}:{_port(job[1] if job else '0')}",
        _number(environment, "OMPI_COMM_WORLD_SIZE"),
        _number(environment, "OMPI_COMM_WORLD_RANK"),
    )


def _tpu(environment: Mapping[str, str]) -> Place | None:
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    if not names or "TPU_WORKER_ID" not in environment:
        return None
    hosts = names.split(",")
    index = _number(environment, "TPU_WORKER_ID")
    if index >= len(hosts):
        raise UserError(f"TPU_WORKER_ID is {index}, but TPU_WORKER_HOSTNAMES names {len(hosts)}")
    return Place(f"{hosts[0]}:{TPU_PORT}", len(hosts), index, hosts[index])


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r}: it must be a number")
    return int(value)


def _port(job: str) -> int:
    first, count = PORTS
    return first + (int(job) if job.isdecimal() else 0) % count
