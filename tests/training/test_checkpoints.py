"""Checkpoints: onto another mesh, past damage, and of which model."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.parallel.mesh import MeshConfig
from research.training.checkpoints import Checkpoints

VALUES = np.arange(64, dtype=np.float32).reshape(8, 8)


WHOLE = PartitionSpec()


def state(spec: PartitionSpec = WHOLE, **mesh: int) -> dict[str, Any]:
    devices = MeshConfig(**mesh).build(jax.devices("cpu")[: int(np.prod(list(mesh.values())))])
    sharding = NamedSharding(devices, spec)
    return {
        "kernel": jax.device_put(VALUES, sharding),
        "step": jax.device_put(jnp.int32(3), NamedSharding(devices, WHOLE)),
    }


def abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def save(folder: Path, *steps: int, keep: int = 5) -> None:
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, state(PartitionSpec("fsdp"), data=1, fsdp=8))
    checkpoints.wait()
    checkpoints.close()


def test_what_eight_devices_saved_any_mesh_restores(tmp_path: Path) -> None:
    save(tmp_path, 4)
    for wanted in (
        state(data=1),
        state(PartitionSpec(None, "tensor"), data=2, tensor=4),
        state(PartitionSpec(("data", "fsdp")), data=2, fsdp=2),
    ):
        checkpoints = Checkpoints(tmp_path)
        step, restored = checkpoints.restore(abstract(wanted))
        checkpoints.close()
        assert step == 4
        assert restored["kernel"].sharding == wanted["kernel"].sharding
        np.testing.assert_array_equal(restored["kernel"], VALUES)
        assert restored["step"].dtype == jnp.int32 and int(restored["step"]) == 3


def test_the_newest_are_kept_and_those_at_multiples(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(step, state(data=1))
    checkpoints.wait()
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 7]


def test_damaged_checkpoints_are_passed_over_and_then_replaced(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6)
    for step in (4, 6):
        for path in [path for path in (tmp_path / str(step)).rglob("*") if path.is_file()]:
            path.write_bytes(path.read_bytes()[:10])
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=5)
    wanted = abstract(state(data=1))
    step, _ = checkpoints.restore(wanted, told.append)
    assert step == 2
    assert [line.split()[1] for line in told] == ["6", "4"]
    assert (tmp_path / "6").exists()  # who only reads deletes nothing
    # Orbax refuses to save a step before its newest, readable or not.
    checkpoints.save(3, state(data=1))
    checkpoints.save(4, state(data=1))
    checkpoints.wait()
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.restore(wanted, told.append)[0] == 4
    again.close()
    assert len(told) == 2


def test_another_tree_is_named_by_its_first_difference(tmp_path: Path) -> None:
    save(tmp_path, 4)
    checkpoints = Checkpoints(tmp_path)
    wanted = abstract(state(data=1))
    wanted["kernel"] = jax.ShapeDtypeStruct((8, 9), jnp.float32)
    with pytest.raises(UserError, match=r"kernel has shape \(8, 8\) there and has shape \(8, 9\)"):
        checkpoints.restore(wanted)
    wanted = abstract(state(data=1))
    del wanted["kernel"]
    with pytest.raises(UserError, match=r"kernel has shape \(8, 8\) there and is missing in"):
        checkpoints.restore(wanted)
    checkpoints.close()


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoints.restore(abstract(state(data=1)))
    checkpoints.close()


def test_layers_come_back_in_other_rounds_of_a_pipeline_with_replicas_in_front_or_not(
    tmp_path: Path,
) -> None:
    mesh = MeshConfig(replica=2, stage=2, data=1).build(jax.devices("cpu")[:4])
    for name, before, spec, after in (
        ("one", (4, 3), PartitionSpec(None, "stage"), (2, 2, 3)),
        ("replicas", (2, 4, 3), PartitionSpec("replica", None, "stage"), (2, 2, 2, 3)),
        ("back", (2, 2, 2, 3), PartitionSpec("replica", "stage"), (2, 4, 3)),
    ):
        values = np.arange(np.prod(before), dtype=np.float32).reshape(before)
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(1, {"blocks": {"kernel": jnp.asarray(values)}})
        checkpoints.wait()
        like = jax.ShapeDtypeStruct(after, jnp.float32, sharding=NamedSharding(mesh, spec))
        _, restored = checkpoints.restore({"blocks": {"kernel": like}})
        checkpoints.close()
        assert restored["blocks"]["kernel"].sharding == like.sharding
        np.testing.assert_array_equal(restored["blocks"]["kernel"], values.reshape(after))
