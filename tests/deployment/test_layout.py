"""Which mesh a run takes with so many processes: the rules, and their refusals with numbers."""

import pytest

from research.deployment.elastic.layout import Declared, elastic_axis, largest
from research.errors import UserError

AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")


def mesh(**sizes: int) -> dict[str, int]:
    return dict.fromkeys(AXES, 1) | sizes


@pytest.mark.parametrize(
    ("sizes", "axis"),
    [
        ({"data": -1}, "data"),
        ({"data": 4, "replica": 2}, "data"),
        ({"replica": 4}, "replica"),
        ({"fsdp": 4}, "fsdp"),
        ({"fsdp": -1, "data": 2}, "fsdp"),
        ({"tensor": 4}, "data"),
    ],
)
def test_one_axis_is_elastic(sizes: dict[str, int], axis: str) -> None:
    assert elastic_axis(mesh(**sizes)) == axis


@pytest.mark.parametrize(
    ("sizes", "devices", "there", "processes", "expected"),
    [
        ({"data": 4}, 1, 3, 3, {"data": 3}),
        ({"data": 3}, 1, 4, 4, {"data": 4}),  # a host that comes back makes it larger again
        ({"data": 4, "tensor": 2}, 2, 3, 3, {"data": 3, "tensor": 2}),
        ({"data": 2, "tensor": 2}, 1, 3, 2, {"data": 1, "tensor": 2}),  # one is a spare
        ({"replica": 2, "data": 2}, 1, 3, 2, {"replica": 2, "data": 1}),
        ({"stage": 2, "fsdp": 2}, 1, 3, 2, {"stage": 2}),
    ],
)
def test_model_axes_stay_and_as_many_processes_as_fit_take_part(
    sizes: dict[str, int], devices: int, there: int, processes: int, expected: dict[str, int]
) -> None:
    layout = largest(Declared(mesh(**sizes), None, devices), there, 1, 4)
    assert (layout.processes, layout.mesh) == (processes, mesh(**expected))


def test_replicas_and_batches_divide() -> None:
    four = Declared(mesh(replica=4), replicas=4, devices=1)
    assert largest(four, 3, 1, 4).mesh["replica"] == 2  # 4 replicas do not divide over 3
    eight = Declared(mesh(data=4), None, 1, batch=8)
    assert largest(eight, 3, 1, 4).processes == 2  # 8 rows do not divide over 3
    micro = Declared(mesh(data=4), None, 1, batch=24, microbatches=4)
    assert largest(micro, 4, 1, 4).processes == 3  # 24 / 4 = 6 rows do not divide over 4
    assert str(largest(micro, 4, 1, 4)) == "data 3"
    assert largest(micro, 4, 1, 4).words()[4:6] == ["--mesh.data", "3"]


def test_no_layout_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError) as refused:
        largest(Declared(mesh(tensor=4, data=2), None, 2, batch=8), 1, 1, 4)
    assert str(refused.value) == (
        "no layout of 1 to 1 processes with 2 devices each fits: tensor 4 = 4 stays and only data "
        "changes, batch 8; choose other --mesh sizes, or another --elastic"
    )
