"""The templates of scripts/launch: they start what exists, and place a run again that was saved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch"

STAND_INS = {
    # As `srun` would, on one node: what follows its own options, in the environment of a task.
    "srun": 'while [[ $1 == --* ]]; do shift; done; export SLURM_STEP_NUM_TASKS=1; "$@"',
    "scontrol": 'echo "$@" >>"$LOG"',
    "research": 'echo "$@" >>"$LOG"; exit "$STATUS"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands of a cluster are at hand, and `research` only says what
    it was asked."""
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": "12",
        "SLURM_NNODES": "4",
        "RUN": str(tmp_path / "run"),
    }


@pytest.mark.parametrize("status", [0, 75, 1])
def test_slurm_trains_then_resumes_and_queues_what_was_saved_again(
    slurm: dict[str, str], status: int
) -> None:
    run, log = Path(slurm["RUN"]), Path(slurm["LOG"])
    words = ["bash", str(LAUNCH / "slurm.sh"), "configs/x.py", "--run.steps", "9"]
    environment = slurm | {"STATUS": str(status)}
    for _ in range(2):
        assert subprocess.run(words, env=environment, check=False).returncode == status
        run.mkdir(exist_ok=True)
        (run / "config.json").touch()
    elastic = "launch --processes 1 --elastic 2:4 --"
    again = ["requeue 12"] if status == 75 else []
    assert log.read_text().splitlines() == [
        f"{elastic} train configs/x.py --run.steps 9 --run.directory {run}",
        *again,
        f"{elastic} resume {run}",
        *again,
    ]


def test_a_job_of_ray_trains_or_resumes_by_what_lies_on_the_cluster(slurm: dict[str, str]) -> None:
    """`ray job submit` runs what stands after `--` by a shell on the head; here on the spot."""
    run, log = Path(slurm["RUN"]), Path(slurm["LOG"])
    ray = run.parent / "ray"
    ray.write_text(
        "#!/usr/bin/env bash\n"
        'echo "${@:1:2}" >>"$LOG"; while [[ $1 != -- ]]; do shift; done; shift\n'
        'exec sh -c "$("$PYTHON" -c "import shlex, sys; print(shlex.join(sys.argv[1:]))" "$@")"\n'
    )
    ray.chmod(0o755)
    words = ["bash", str(LAUNCH / "ray_job.sh"), "configs/x y.py", "--run.steps", "9"]
    assert subprocess.run(words, env=slurm, check=False, capture_output=True).returncode == 1
    environment = slurm | {"STATUS": "3", "GPUS": "2", "RAY_ADDRESS": "http://head:8265"}
    environment["PYTHON"] = sys.executable
    for _ in range(2):
        assert subprocess.run(words, env=environment, check=False).returncode == 3
        run.mkdir(exist_ok=True)
        (run / "config.json").touch()
    launch = "launch --engine ray --worker-cpus 1 --worker-gpus 2 --"
    assert log.read_text().splitlines() == [
        "job submit",
        f"{launch} train configs/x y.py --run.steps 9 --run.directory {run}",
        "job submit",
        f"{launch} resume {run}",
    ]


def test_the_manifests_name_options_that_there_are() -> None:
    """Every word of `research launch` in them is one that it knows."""
    done = subprocess.run(
        [sys.executable, "-m", "research", "launch", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    text = (LAUNCH / "jobset.yaml").read_text()
    words = text[text.index("exec research launch") : text.index(" -- ")].split()
    flags = [word for word in words if word.startswith("--")]
    assert flags and all(f"{flag} " in done.stdout for flag in flags), flags


@pytest.mark.parametrize("name", ["jobset.yaml", "tpu.yaml"])
def test_manifests_are_yaml_of_a_jobset_whose_pods_start_the_command(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((LAUNCH / name).read_text())
    assert (manifest["kind"], manifest["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    [job] = manifest["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    assert pods["parallelism"] == pods["completions"]
    [container] = pods["template"]["spec"]["containers"]
    script = container["command"][-1]
    given = {variable["name"] for variable in container["env"]}
    for variable in ("CONFIG", "RUN"):
        assert f"${variable}" in script and variable in given
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    if name == "jobset.yaml":
        host = f"{manifest['metadata']['name']}-{job['name']}-0-0.{manifest['metadata']['name']}"
        assert {"name": "RENDEZVOUS", "value": f"{host}:7777"} in container["env"]
