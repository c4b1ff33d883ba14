"""Several processes: they meet, stop at one step, and none outlives a failure of another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from research.errors import UserError
from research.parallel.launch import launch

ROOT = Path(__file__).parents[2]

MEET = """
import json, os, pathlib, random, signal, sys, time
from research.parallel import processes
from research.parallel.stopping import StopRequest

folder = pathlib.Path(sys.argv[1])
processes.initialize(cpu_devices=1)
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

index = processes.index()
mesh = Mesh(np.array(jax.devices()), ("replica",))
mine = NamedSharding(mesh, P("replica"))
numbers = jax.make_array_from_callback(
    (processes.count(),), mine, lambda at: np.arange(10.0, dtype=np.float32)[at]
)
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))

def write(name, value):
    (folder / "writing").with_suffix(f".{index}").write_text(json.dumps(value))
    (folder / "writing").with_suffix(f".{index}").rename(folder / f"{name}-{index}")
"""

AGREE = (
    MEET
    + """
assert float(total(numbers)) == sum(range(processes.count()))
processes.barrier("same name twice")
processes.barrier("same name twice")
for turn in "ab":
    everyone = [f"{turn} {each}" for each in range(processes.count())]
    assert processes.gathered("same name twice", f"{turn} {index}") == everyone

# Hosts that run ahead of each other, as asynchronous dispatch lets them: no collective in between.
rng = random.Random(index)
stops = []
for trial in range(20):
    asking = {trial % processes.count(), random.Random(trial).randrange(processes.count())}
    at = random.Random(trial).randrange(30)
    first = 100 * trial  # as after a resume
    with StopRequest() as stop:
        for step in range(first, first + 60):
            time.sleep(rng.random() * 0.004)
            if index in asking and step == first + at:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.reached(step):
                break
        else:
            step = None
        stops.append(step)
    assert step is not None and step >= first + at, (trial, step, at)
    assert stop.signal_name == "SIGTERM"
    processes.barrier("trial")

with StopRequest() as stop:  # nobody asks; what a step pays
    began = time.perf_counter()
    for step in range(10_000):
        assert not stop.reached(step)
    seconds = (time.perf_counter() - began) / 10_000
write("stops", stops)
write("seconds", seconds)
"""
)

LOOP = (
    MEET
    + """
with StopRequest() as stop:
    for step in range(100_000):
        total(numbers).block_until_ready()
        if step == 20:  # compiled and connected
            write("pid", os.getpid())
        time.sleep(0.005)
        if stop.reached(step):
            processes.barrier("save")
            write("stop", step)
            break
"""
)

ORPHAN = """
import os, pathlib, sys, time
from research.parallel import processes
processes._follow_launcher()
index = os.environ["RESEARCH_PROCESS"]
path = pathlib.Path(sys.argv[1]) / f"pid-{index}"
path.with_name(f"writing-{index}").write_text(str(os.getpid()))
path.with_name(f"writing-{index}").rename(path)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def script(folder: Path, text: str) -> list[str]:
    (folder / "script.py").write_text(text)
    return [sys.executable, str(folder / "script.py")]


def read(folder: Path, name: str, processes: int = 4) -> list:
    """What each process wrote, waited for."""
    deadline = time.monotonic() + 120
    paths = [folder / f"{name}-{index}" for index in range(processes)]
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < deadline, f"no {name} from some of {processes} processes"
        time.sleep(0.02)
    return [json.loads(path.read_text()) for path in paths]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def in_background(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


@pytest.mark.distributed
def test_processes_meet_and_agree_on_the_step_to_stop_at(tmp_path: Path) -> None:
    assert launch(4, [str(tmp_path)], program=script(tmp_path, AGREE)) == 0
    stops = read(tmp_path, "stops")
    assert stops[1:] == stops[:1] * 3
    # 1 % of a step of 20 ms is 200 µs.
    assert max(read(tmp_path, "seconds")) < 200e-6


@pytest.mark.distributed
def test_a_killed_process_is_named_and_the_rest_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[float] = []

    def kill() -> None:
        pid = read(tmp_path, "pid")[2]
        time.sleep(0.5)
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    thread = in_background(kill)
    status = launch(4, [str(tmp_path)], program=script(tmp_path, LOOP))
    seconds = time.monotonic() - killed[0]
    thread.join()
    pids = read(tmp_path, "pid")
    assert status == 1
    assert seconds < 10  # settling, grace and what a busy machine adds
    assert not any(is_running(pid) for pid in pids)
    assert f"process 2 of 4 (pid {pids[2]}) was killed by SIGKILL" in capfd.readouterr().err


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all_at_one_step(
    tmp_path: Path, number: signal.Signals
) -> None:
    processes = 4 if number == signal.SIGTERM else 2
    code = (
        "import sys; from research.parallel.launch import launch;"
        f"sys.exit(launch({processes}, sys.argv[1:2], program=sys.argv[2:]))"
    )
    program = script(tmp_path, LOOP)
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *program], stderr=subprocess.PIPE, text=True
    )
    read(tmp_path, "pid", processes)
    time.sleep(0.5)
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors
    stops = read(tmp_path, "stop", processes)
    assert stops == stops[:1] * processes
    assert errors.count(f"{number.name}: stopping after this step") == 1


@pytest.mark.distributed
def test_nothing_outlives_a_killed_launcher(tmp_path: Path) -> None:
    code = (
        "import sys; from research.parallel.launch import launch;"
        "launch(3, sys.argv[1:2], program=sys.argv[2:])"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *script(tmp_path, ORPHAN)]
    )
    pids = read(tmp_path, "pid", 3)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


DEAF = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
(pathlib.Path(sys.argv[1]) / f"ready-{os.environ['RESEARCH_PROCESS']}").write_text("true")
time.sleep(600)
"""


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_processes_that_cannot_save_are_ended(
    tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    """SIGTERM before there is anything to save; and a second Ctrl-C while nobody listens."""
    code = (
        "import sys; from research.parallel.launch import launch;"
        "sys.exit(launch(2, sys.argv[1:2], grace=0.5, program=sys.argv[2:]))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *script(tmp_path, DEAF)],
        stderr=subprocess.PIPE,
        text=True,
    )
    read(tmp_path, "ready", 2)
    for number in numbers:
        launcher.send_signal(number)
        time.sleep(0.2)  # two equal signals that are both pending would be one
    _, errors = launcher.communicate(timeout=10)
    assert launcher.returncode == 1
    assert errors == f"stopped by {numbers[0].name} before the run could be saved\n"


FAILURE = """
import os, sys, time
if os.environ["RESEARCH_PROCESS"] == "{process}":
    print("working")
    {action}
time.sleep(600)
"""


def test_an_exception_of_one_process_is_shown_with_what_it_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = FAILURE.format(process=1, action="raise ValueError('loss is nan')")
    assert launch(3, [], program=script(tmp_path, text)) == 1
    errors = capfd.readouterr().err
    assert "[1] working\n" in errors
    assert "process 1 of 3 (pid " in errors
    assert "ended with status 1: ValueError: loss is nan" in errors


def test_what_a_failed_process_started_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "worker"
    action = (
        "import pathlib, subprocess; worker = subprocess.Popen(['sleep', '600']); "
        f"pathlib.Path({str(path)!r}).write_text(str(worker.pid)); sys.exit(1)"
    )
    text = FAILURE.format(process=1, action=action)
    assert launch(2, [], program=script(tmp_path, text)) == 1
    time.sleep(0.2)  # a killed process is not gone at once
    assert not is_running(int(path.read_text()))


def test_a_process_that_ignores_its_end_is_killed(tmp_path: Path) -> None:
    text = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + FAILURE.format(
        process=0, action="sys.exit(1)"
    )
    began = time.monotonic()
    assert launch(2, [], grace=0.5, program=script(tmp_path, text)) == 1
    assert time.monotonic() - began < 10


def test_a_mistake_of_all_is_printed_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "import sys, os, time; time.sleep(0.3 * (os.environ['RESEARCH_PROCESS'] == '0'))\n"
    text += "print('error: no such config', file=sys.stderr); sys.exit(2)"
    assert launch(3, [], program=script(tmp_path, text)) == 2
    assert capfd.readouterr().err == "error: no such config\n"


def test_a_mistake_of_one_is_printed_with_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = FAILURE.format(process=1, action="print('error: no data here'); sys.exit(2)")
    assert launch(2, [], grace=0.5, program=script(tmp_path, text)) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: process 1 of 2 (pid ")
    assert errors.endswith("ended with status 2: no data here\n")


@pytest.mark.parametrize(
    ("processes", "command", "sentence"),
    [
        (0, ["train", "x.py"], "--processes is 0"),
        (2, [], "nothing to launch"),
        (2, ["plan", "x.py"], "cannot launch 'plan'"),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    processes: int, command: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        launch(processes, command)
