"""What may befall a run on one machine: it ends with the losses of one that nothing befell."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

RELATIVE = 2e-4
"""As the law of the layout has it: sums over other meshes are added in another order. A run of 400
steps adds its own: differences grow as it goes on."""

EVERY = 10
"""`--run.snapshot-every`."""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_and_hung_processes_cost_no_bit_where_the_mesh_is_the_same_again(
    elastic: Any, undisturbed: list[float]
) -> None:
    """The last, the first, and one that hangs: their places are filled at once."""
    run = elastic("--return-seconds", 0, "--hang-seconds", 3)
    os.kill(run.reaches(35)[2], signal.SIGKILL)
    os.kill(run.reaches(115, generation=2)[0], signal.SIGKILL)
    os.kill(run.reaches(230, generation=3)[1], signal.SIGSTOP)
    said = run.end()
    assert run.losses() == undisturbed
    first, second, third, last = run.generations()
    assert "process 2" in first["cause"] and "SIGKILL" in first["cause"]
    assert "process 0" in second["cause"] and "SIGKILL" in second["cause"]
    assert "process 1 is stopped by a signal; a step waits for others in " in third["cause"]
    assert "all-reduce over data" in third["cause"]
    assert [g["processes"] for g in run.generations()] == [3] * 4
    assert all(g["lost"] <= EVERY and g["source"] == "snapshot" for g in (second, third, last))
    lost = sum(g["lost"] for g in run.generations())
    assert f"4 generations, {lost} steps lost and done again" in said
    # The two that were not stopped wrote where they were: in the step's collective.
    stacks = [run.folder / "stacks" / f"generation-3-process-{rank}.txt" for rank in (0, 2)]
    assert all("research/training/loop.py" in path.read_text() for path in stacks)
    # A tidy end: nothing is left in memory.
    assert not list(Path("/dev/shm").glob(f"research-{(run.folder / '.identity').read_text()}*"))


def test_a_smaller_mesh_goes_on_and_a_killed_supervisor_loses_nothing(
    elastic: Any, undisturbed: list[float]
) -> None:
    run = elastic("--return-seconds", 1000)
    os.kill(run.reaches(50)[1], signal.SIGKILL)
    workers = run.reaches(120, generation=2)
    assert len(workers) == 2
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    # Nobody tells them to: they save, and leave.
    run.wait(lambda: not any(is_running(pid) for pid in workers.values()))
    saved = [int(path.name) for path in (run.folder / "checkpoints").glob("[0-9]*")]
    done = len(run.losses())
    assert max(saved) == done >= 120
    again = elastic(resume=True)
    said = again.end()
    assert f"restored step {done}" in said
    assert [g["mesh"] for g in again.generations()] == ["data 3"]
    assert again.losses() == pytest.approx(undisturbed, rel=RELATIVE)


def test_a_termination_saves_at_one_step_and_asks_to_be_placed_again(elastic: Any) -> None:
    """Sent to every process of the job, as SLURM does."""
    run = elastic()
    run.reaches(40)
    for pid in [*run.children(), run.process.pid]:
        os.kill(pid, signal.SIGTERM)
    said = run.end(status=75)
    step = len(run.losses())
    assert f"SIGTERM: saved at step {step} of 400" in said
    assert [int(path.name) for path in (run.folder / "checkpoints").glob("[0-9]*")] == [step]
    assert json.loads((run.folder / "generations.jsonl").read_text())["cause"] == "SIGTERM"
