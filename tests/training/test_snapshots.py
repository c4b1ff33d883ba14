"""A snapshot in memory is the state, on any mesh; and one that is not whole is none."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.parallel.mesh import MeshConfig
from research.training import snapshot_files, snapshots
from research.training.snapshots import Snapshots

IDENTITY = "of-this-run"


def state(mesh: jax.sharding.Mesh, scale: float = 1.0) -> dict[str, jax.Array]:
    """Sharded, replicated, both, a scalar and another type; 24 divides over 3, 4 and 8."""
    values: dict[str, tuple[Any, PartitionSpec]] = {
        "a": (scale * jnp.arange(24.0 * 6).reshape(24, 6), PartitionSpec("fsdp")),
        "b": (scale * jnp.arange(6.0), PartitionSpec()),
        "c": (scale * jnp.arange(24.0 * 2).reshape(2, 24), PartitionSpec(None, "data")),
        "step": (jnp.int32(7 * scale), PartitionSpec()),
        "half": (jnp.full((24,), scale, jnp.bfloat16), PartitionSpec(("data", "fsdp"))),
    }
    return {
        name: jax.device_put(value, NamedSharding(mesh, spec))
        for name, (value, spec) in values.items()
    }


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


@pytest.mark.parametrize("there", [MeshConfig(data=8), MeshConfig(data=1, fsdp=3)])
def test_a_snapshot_is_put_together_on_any_mesh(tmp_path: Path, there: MeshConfig) -> None:
    here = MeshConfig(data=2, fsdp=4).build(jax.devices()[:8])
    saved = state(here)
    Snapshots(tmp_path, IDENTITY, 5).save(10, saved)
    assert snapshots.newest(tmp_path, IDENTITY) == 10
    devices = jax.devices()[: 8 if there.data == 8 else 3]
    like = abstract(state(there.build(devices)))
    restored = snapshots.restore(tmp_path, IDENTITY, 10, like)
    for name, leaf in restored.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(saved[name]))
        assert leaf.sharding == like[name].sharding


def test_files_are_written_over_and_the_newest_stays_whole(tmp_path: Path) -> None:
    mesh = MeshConfig().build(jax.devices()[:1])
    ours = Snapshots(tmp_path, IDENTITY, 5)
    for step in (5, 10, 15, 20):
        ours.save(step, state(mesh, step))
    assert sorted(file.step for file in snapshot_files.held(tmp_path)) == [15, 20]
    restored = snapshots.restore(tmp_path, IDENTITY, 15, abstract(state(mesh)))
    assert float(restored["b"][1]) == 15
    assert snapshots.newest(tmp_path, "of-another-run") is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    mesh = MeshConfig().build(jax.devices()[:1])
    Snapshots(tmp_path, IDENTITY, 5).save(5, state(mesh))
    other = abstract(state(mesh) | {"b": jnp.zeros(7)})
    with pytest.raises(ValueError, match=r"\['b'\] is float32\[6\] there and float32\[7\]"):
        snapshots.restore(tmp_path, IDENTITY, 5, other)


def test_a_snapshot_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    mesh = MeshConfig().build(jax.devices()[:1])
    Snapshots(tmp_path, IDENTITY, 5).save(5, state(mesh))
    [file] = snapshot_files.held(tmp_path)
    file.path.write_bytes(file.path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut short"):
        snapshots.restore(tmp_path, IDENTITY, 5, abstract(state(mesh)))


def test_only_snapshots_with_all_their_parts_count(tmp_path: Path) -> None:
    def write(generation: int, step: int, rank: int, part: str, parts: list[str]) -> None:
        header = {"identity": IDENTITY, "part": part, "parts": parts, "leaves": []}
        content = json.dumps(header).encode()
        path = tmp_path / snapshot_files.name_of(generation, step, rank)
        path.write_bytes(len(content).to_bytes(8, "little") + content)

    write(1, 10, 0, "x", ["x", "y"])
    write(1, 10, 1, "y", ["x", "y"])
    write(1, 20, 0, "x", ["x", "y"])  # its other part died with its host
    write(2, 15, 2, "z", ["z"])  # any of several copies
    (tmp_path / "g3-s30-r0.snapshot").write_bytes(b"torn")
    assert snapshot_files.complete(snapshot_files.held(tmp_path)) == [(15, 2), (10, 1)]
    assert snapshots.newest(tmp_path, IDENTITY) == 15
