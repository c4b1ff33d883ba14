"""Collectives read from programs that every supported version of JAX has compiled.

scripts/record_programs.py records them; what they send is known, and is the same in all.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from research.parallel.arithmetic import matrix_flops
from research.parallel.collectives import Collective, collectives, without_slices
from research.parallel.hlo import parse

FOLDER = Path(__file__).parent / "programs"
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
RECORDED = sorted({path.stem.split("_", 1)[1] for path in FOLDER.glob("*.txt")})


def read(name: str, version: str) -> list[Collective]:
    return collectives((FOLDER / f"{name}_{version}.txt").read_text(), MESH)


def test_both_ends_of_the_supported_versions_and_a_tpu_are_recorded() -> None:
    assert any("0.10" in each and "cpu" in each for each in RECORDED)
    assert any("0.12" in each and "cpu" in each for each in RECORDED)
    assert any("tpu" in each for each in RECORDED)


@pytest.mark.parametrize("version", RECORDED)
def test_a_gather_and_a_scatter_in_a_loop(version: str) -> None:
    gather, scatter = read("fsdp", version)
    assert (gather.kind, gather.axes, gather.devices, gather.calls) == (
        "all-gather",
        ("fsdp",),
        2,
        3,
    )
    matrix = 128 * 128
    # A TPU multiplies in bfloat16 unless told otherwise, and gathers no more than that.
    assert gather.payload == matrix * (2 if "tpu" in version else 4)
    assert gather.wire == gather.payload / 2
    assert (scatter.kind, scatter.axes, scatter.calls) == ("reduce-scatter", ("fsdp",), 3)
    assert (scatter.payload, scatter.wire) == (matrix * 4, matrix * 2)
    assert scatter.printed == "all-reduce"
    as_printed = without_slices([scatter])[0]
    assert (as_printed.kind, as_printed.wire, as_printed.total) == (
        "all-reduce",
        matrix * 4,
        3 * matrix * 4,
    )


@pytest.mark.parametrize("version", RECORDED)
def test_exchanges_in_a_loop(version: str) -> None:
    there, back, permute, reduction = read("exchanges", version)
    part = 4 * 32 * 4  # 8 rows over tensor = 2, of 32 float32
    for each in (there, back):
        assert (each.kind, each.axes, each.payload, each.wire) == (
            "all-to-all",
            ("tensor",),
            part,
            part / 2,
        )
    # Half of the devices send: those at the first place of `data`.
    assert (permute.kind, permute.axes, permute.wire) == (
        "collective-permute",
        ("data",),
        part / 2,
    )
    assert (reduction.kind, reduction.axes, reduction.devices) == (
        "all-reduce",
        ("data", "fsdp"),
        4,
    )
    assert reduction.wire == 2 * part * 3 / 4
    assert all(each.calls == 5 and each.is_certain for each in (there, back, permute, reduction))


@pytest.mark.parametrize("version", RECORDED)
def test_a_sum_in_one_branch_is_marked(version: str) -> None:
    (each,) = read("sometimes", version)
    assert (each.kind, each.axes, each.calls, each.payload) == ("all-reduce", ("data",), 1, 256)
    assert len(each.branches) == 1


@pytest.mark.parametrize("version", RECORDED)
def test_arithmetic_multiplies_by_trip_counts(version: str) -> None:
    """Rows over fsdp = 2: three layers, forward, and two products back, but none for the inputs of
    the first. (XLA computes that one too: it is in the loop.)"""
    program = parse((FOLDER / f"fsdp_{version}.txt").read_text())
    assert matrix_flops(program) == 3 * 3 * 2 * 16 * 128 * 128


def test_what_is_compiled_here_is_read_as_what_is_recorded() -> None:
    """This JAX's programs have the forms that the parser knows, whatever its version."""
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), tuple(MESH), auto, devices=jax.devices("cpu")[:8])

    def local(x: jax.Array) -> jax.Array:
        turn = lambda x, _: (jax.lax.psum(jnp.sin(x), ("data", "tensor")), None)  # noqa: E731
        return jax.lax.scan(turn, x, None, length=7)[0]

    spec = jax.sharding.PartitionSpec("fsdp")
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)
        text = jax.jit(mapped).lower(jnp.zeros((8, 4))).compile().as_text()
    (each,) = collectives(text, dict(mesh.shape))
    assert (each.axes, each.devices, each.calls, each.payload) == (("data", "tensor"), 4, 7, 64)


@pytest.mark.parametrize(("strides", "pairs"), [((1, 1), 22 * 22), ((2, 2), 11 * 11)])
def test_a_convolution_counts_no_padding(strides: tuple[int, int], pairs: int) -> None:
    """8 × 8 pixels under 3 × 3: along a dimension 3 · 8 - 2 elements meet, without padding."""
    dimensions = ("NHWC", "HWIO", "NHWC")

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            image, kernel, strides, "SAME", dimension_numbers=dimensions
        )

    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    text = jax.jit(convolve).lower(image, kernel).compile().as_text()
    assert matrix_flops(parse(text)) == 2 * 2 * 3 * 5 * pairs
