"""What a disk does to a run: it fills up in a save, and damages what was saved."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.long]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("to mount a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_in_a_save_ends_the_run_with_all_its_steps_safe(
    elastic: Any, small_disk: Path, undisturbed: list[float]
) -> None:
    run = elastic(run="disk/run")
    run.reaches(30)
    filling = small_disk / "filling"
    with open(filling, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    said = run.end(status=1)
    assert "no space left on the disk" in said
    done = len(run.losses())
    filling.unlink()
    again = elastic(run="disk/run", resume=True)
    assert "from memory" in again.end()
    assert again.losses() == undisturbed
    assert done >= 30


def test_a_kill_in_the_middle_of_a_save_costs_no_bit(
    elastic: Any, undisturbed: list[float]
) -> None:
    """As soon as the unfinished folder of the second checkpoint is seen."""
    run = elastic("--return-seconds", 0)
    pids = run.reaches(150)
    folder = run.folder / "checkpoints"
    run.wait(
        lambda: [p for p in folder.glob("200*") if p.name != "200"] or (folder / "200").exists()
    )
    os.kill(pids[0], signal.SIGKILL)
    run.end()
    assert run.losses() == undisturbed
    assert len(run.generations()) == 2


@pytest.mark.parametrize("what", ["checkpoint", "snapshot"])
def test_what_is_damaged_is_passed_over_and_told(
    elastic: Any, undisturbed: list[float], what: str
) -> None:
    """Of a run whose supervisor and workers all were killed at once."""
    run = elastic()
    workers = run.reaches(250)
    for pid in [run.process.pid, *workers.values()]:
        os.kill(pid, signal.SIGKILL)
    run.process.wait()
    memory = list(Path("/dev/shm").glob(f"research-{(run.folder / '.identity').read_text()}-*"))
    if what == "checkpoint":
        for folder in memory:
            shutil.rmtree(folder)
        for path in sorted((run.folder / "checkpoints" / "200").rglob("d/*")):
            path.unlink()
    else:
        for path in memory[0].glob("*.snapshot"):
            path.write_bytes(path.read_bytes()[:-4])
    again = elastic(resume=True)
    said = again.end()
    if what == "checkpoint":
        assert "warning: checkpoint 200 cannot be read" in said and "restored step 100" in said
    else:
        assert "cannot be read" in said and "cut short" in said and "restored step 200" in said
    assert again.losses() == undisturbed
