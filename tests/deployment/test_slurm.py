"""The template of SLURM by a real slurmctld and slurmd, on a cluster of this machine alone."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster import Cluster, why_not

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.distributed

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(48,)),
    data=ImagesConfig(name="digits", batch=48),
    run=RunConfig(steps=1500, log_every=1, evaluate_batches=2, tensorboard=False),
)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path / "cluster")
    yield made
    made.close()


def test_a_job_that_has_to_leave_is_queued_again_and_goes_on_with_its_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    """SIGTERM, as SLURM sends it before the time is up: a save at one step, status 75, the queue,
    and the same run to its end."""
    config, run, output = tmp_path / "config.py", tmp_path / "run", tmp_path / "output"
    config.write_text(CONFIG)
    # `research` is a command of the environment that submits.
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "research").write_text(f'#!/bin/sh\nexec {sys.executable} -m research "$@"\n')
    (bin / "research").chmod(0o755)
    cluster.environment |= {
        "PATH": f"{bin}:{cluster.environment['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PROCESSES": "2",
        "RUN": str(run),
    }
    sized = ["--nodes=1", "--gpus-per-node=0", "--time=10", f"--output={output}"]
    template = ROOT / "scripts" / "launch" / "slurm.sh"
    words = [config, "--cpu-devices", 1]
    job = cluster.run("sbatch", "--parsable", *sized, template, *words).strip()

    def reaches(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            said = output.read_text() if output.exists() else ""
            assert time.monotonic() < deadline, (cluster.job(job), said)
            time.sleep(0.2)

    reaches(lambda: len(_steps(run)) >= 30)
    cluster.run("scancel", "--signal=TERM", job)
    reaches(lambda: cluster.job(job)["Restarts"] == "1")
    saved = _steps(run)[-1]
    assert 30 <= saved < 1500
    assert f"{saved}" in os.listdir(run / "checkpoints")
    reaches(lambda: cluster.job(job)["JobState"] == "COMPLETED")
    assert _steps(run) == list(range(1, 1501))
    said = output.read_text()
    assert f"restored step {saved}" in said
    assert "stopped by SIGTERM and saved" in said


def _steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]
