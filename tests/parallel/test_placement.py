"""What whoever placed a process says of it: SLURM, Open MPI, Kubernetes, TPU hosts."""

import pytest

from research.errors import UserError
from research.parallel.placement import Place, first_host, place

SLURM = {
    "SLURM_JOB_ID": "8193",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[03-05,9]",
    "SLURM_PROCID": "2",
    "SLURMD_NODENAME": "gpu05",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, Place("gpu03:61441", 4, 2, "gpu05")),
        # The script of a job knows of its tasks, and is none of them.
        ({"SLURM_JOB_ID": "8193", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_RANK": "7",
                "OMPI_MCA_orte_hnp_uri": "8193.0;tcp://10.96.0.1,10.148.0.1:34911",
            },
            Place("10.96.0.1:61441", 8, 7),
        ),
        (
            {
                "RESEARCH_COORDINATOR": "research-hosts-0-0.research:7777",
                "RESEARCH_PROCESSES": "4",
                "JOB_COMPLETION_INDEX": "3",
            },
            Place("research-hosts-0-0.research:7777", 4, 3),
        ),
        (
            {"TPU_WORKER_HOSTNAMES": "t-0,t-1,t-2,t-3", "TPU_WORKER_ID": "1"},
            Place("t-0:8476", 4, 1, "t-1"),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        # What says it in our own words says it last.
        (
            SLURM
            | {
                "RESEARCH_COORDINATOR": "10.0.0.1:7777",
                "RESEARCH_PROCESSES": "2",
                "RESEARCH_PROCESS": "1",
            },
            Place("10.0.0.1:7777", 2, 1),
        ),
    ],
)
def test_the_environment_of_each_is_read(
    environment: dict[str, str], expected: Place | None
) -> None:
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[03-05,9],login", "gpu03"), ("a,b", "a"), ("node7", "node7"), ("x[8,1-3]", "x8")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_numbers_that_are_none_are_named() -> None:
    with pytest.raises(UserError, match="SLURM_PROCID is 'x': it must be a number"):
        place(SLURM | {"SLURM_PROCID": "x"})
    with pytest.raises(UserError, match="TPU_WORKER_ID is 4, but TPU_WORKER_HOSTNAMES names 2"):
        place({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "4"})
