"""Checkpoints: onto another mesh, past damage, and of which model."""

import contextlib
import json
import subprocess
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
from research.training.digests import Damaged, check

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


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "default").rglob("*") if path.is_file())


def test_digests_are_of_every_file_of_the_arrays(tmp_path: Path) -> None:
    """As `sha256sum` tells them."""
    save(tmp_path, 4)
    told = json.loads((tmp_path / "4" / "digests.json").read_text())["sha256"]
    files = files_of(tmp_path / "4")
    assert {tmp_path / "4" / name for name in told} == set(files) and len(files) > 3
    listed = subprocess.run(["sha256sum", *files], capture_output=True, text=True, check=True)
    by_name = {Path(line[66:]): line[:64] for line in listed.stdout.splitlines()}
    assert by_name == {tmp_path / "4" / name: digest for name, digest in told.items()}
    # Processes share the work: each file is read by one of them.
    for parts in (1, 3):
        counts = [0] * len(files)
        for part in range(parts):
            for number, path in enumerate(files):
                whole = path.read_bytes()
                path.write_bytes(whole + b"!")
                with contextlib.suppress(Damaged):
                    assert check(tmp_path / "4", part, parts)
                    counts[number] += 1
                path.write_bytes(whole)
        assert counts == [parts - 1] * len(files)


def test_one_bit_of_any_file_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    checkpoints = Checkpoints(tmp_path)
    wanted = abstract(state(data=1))
    for path in files_of(tmp_path / "4"):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        told: list[str] = []
        step, restored = checkpoints.restore(wanted, told.append)
        assert step == 2 and "taking the one before" in told[0]
        name = path.relative_to(tmp_path / "4")
        assert f"checkpoint 4 cannot be read (Damaged: {name} is not what was saved" in told[0]
        np.testing.assert_array_equal(restored["kernel"], VALUES)
        path.write_bytes(whole)
    assert checkpoints.restore(wanted)[0] == 4
    checkpoints.close()


def test_files_and_digests_that_are_missing(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    checkpoints, wanted = Checkpoints(tmp_path), abstract(state(data=1))
    told: list[str] = []
    files_of(tmp_path / "4")[-1].unlink()
    assert checkpoints.restore(wanted, told.append)[0] == 2
    digests = tmp_path / "2" / "digests.json"
    digests.write_text(digests.read_text()[:-9])
    with pytest.raises(UserError, match="none of the checkpoints 4, 2 .* can be read"):
        checkpoints.restore(wanted, told.append)
    digests.unlink()  # as of a version that wrote none
    assert checkpoints.restore(wanted, told.append)[0] == 2
    checkpoints.close()
    missing, broken = (
        "4 cannot be read (Damaged: default/",
        "2 cannot be read (Damaged: its digests",
    )
    expected = [missing, missing, broken, missing, "2 has no digests.json"]
    assert all(words in line for words, line in zip(expected, told, strict=True))


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
