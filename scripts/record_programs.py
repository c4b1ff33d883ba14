"""Records compiled programs for the tests of the parser: tests/parallel/programs/.

    python scripts/record_programs.py            what this JAX makes for the CPU
    python scripts/record_programs.py --tpu      and, with `jax[tpu]`, for a TPU v5e:2x4

Run once with every version of JAX that is supported. The programs are small functions of which it
is known what they send: `research.parallel.collectives` has to read the same from all of them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

FOLDER = Path(__file__).parents[1] / "tests/parallel/programs"
AXES = {"data": 2, "fsdp": 2, "tensor": 2}


def fsdp(mesh: Mesh) -> tuple[Callable[..., Any], list[Any]]:
    """Three layers in a loop; weights and rows over fsdp: a gather a pass, and gradients summed, of
    which each device keeps its part."""
    weights = jax.ShapeDtypeStruct(
        (3, 128, 128), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((32, 128), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            w = jax.lax.with_sharding_constraint(w, P())
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), P("fsdp")), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0] ** 2)

    step = jax.jit(jax.grad(loss), out_shardings=weights.sharding)
    return step, [weights, x]


def exchanges(mesh: Mesh) -> tuple[Callable[..., Any], list[Any]]:
    """In a loop of five: an all-to-all over tensor, a permute along data, a sum over two axes."""
    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, P("tensor")))

    def local(x: jax.Array) -> jax.Array:
        def turn(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            x = jax.lax.all_to_all(x, "tensor", 1, 0, tiled=True)
            x = jax.lax.all_to_all(jnp.sin(x), "tensor", 0, 1, tiled=True)
            x = jax.lax.ppermute(x, "data", [(0, 1)])
            return jnp.cos(jax.lax.psum(x, ("data", "fsdp"))), None

        return jax.lax.scan(turn, x, None, length=5)[0]

    mapped = jax.shard_map(local, in_specs=P("tensor"), out_specs=P("tensor"), check_vma=False)
    return jax.jit(mapped), [x]


def sometimes(mesh: Mesh) -> tuple[Callable[..., Any], list[Any]]:
    """A sum over data that is taken in one branch only."""
    x = jax.ShapeDtypeStruct((4, 32), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    now = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P()))

    def local(x: jax.Array, now: jax.Array) -> jax.Array:
        return jax.lax.cond(now > 0, lambda x: jax.lax.psum(x, "data"), lambda x: 2 * x, x)

    mapped = jax.shard_map(local, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    return jax.jit(mapped), [x, now]


PROGRAMS = {"fsdp": fsdp, "exchanges": exchanges, "sometimes": sometimes}


def record(devices: list[Any], label: str) -> None:
    """Writes the text of every program, compiled for `devices`."""
    mesh = jax.make_mesh(
        tuple(AXES.values()),
        tuple(AXES),
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
        devices=devices,
    )
    for name, make in PROGRAMS.items():
        with jax.set_mesh(mesh):
            function, arguments = make(mesh)
            text = function.lower(*arguments).compile().as_text()
        path = FOLDER / f"{name}_{label}.txt"
        # Of the heading all but the first line is about source files, of this machine.
        lines = text.splitlines()
        first = next(i for i, line in enumerate(lines) if line.endswith("{") and "(" in line)
        path.write_text("\n".join([lines[0], "", *lines[first:]]) + "\n")
        print(path.relative_to(FOLDER.parents[2]))


def main() -> None:
    """Records for the CPU, and if asked for a TPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tpu", action="store_true", help="for a TPU v5e:2x4 as well")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    FOLDER.mkdir(parents=True, exist_ok=True)
    record(jax.devices("cpu"), f"jax_{jax.__version__}_cpu")
    if options.tpu:
        from jax.experimental import topologies

        devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
        record(list(devices), f"jax_{jax.__version__}_tpu")


if __name__ == "__main__":
    main()
