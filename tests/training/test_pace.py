"""Who holds the others up is named: by the data it waits for, beyond what the others wait."""

import json
import sys
from pathlib import Path

import pytest

from research.parallel.launch import launch
from research.training.pace import Told, slowest_of

ROOT = Path(__file__).parents[2]

SLOW = """
import json, pathlib, sys, time
from research.parallel import processes
from research.training.pace import Pace
processes.initialize(cpu_devices=1)
import research.training.pace as module
module.EVERY_SECONDS = 0.0
pace = Pace()
told = []
for step in range(30):
    with pace.loading():
        time.sleep(0.02 if processes.index() == 1 else 0.001)
    processes.barrier("step")  # as a collective would make them wait
    time.sleep(0.04)
    if step % 10 == 9:
        processes.barrier("told")
        metrics, sentence = pace.measure()
        told.append([metrics, sentence])
if processes.is_first():
    pathlib.Path(sys.argv[1]).write_text(json.dumps(told))
processes.barrier("end")
"""


def test_what_a_process_costs_is_what_it_waits_beyond_the_median() -> None:
    waits = {0: 0.01, 1: 0.02, 2: 0.05, 3: 0.02}
    told = {index: Told("host", 0.1, wait) for index, wait in waits.items()}
    assert slowest_of(told) == (2, pytest.approx(0.03))


@pytest.mark.distributed
def test_the_slowest_process_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "script.py"
    script.write_text(SLOW)
    out = tmp_path / "told.json"
    assert launch(2, [str(out)], program=[sys.executable, str(script)]) == 0
    told = json.loads(out.read_text())
    metrics, _ = told[-1]
    assert metrics["slowest_process"] == 1
    assert 0.02 <= metrics["data_wait_seconds_1"] < 0.06
    assert metrics["data_wait_seconds_0"] < 0.02
    sentences = [sentence for _, sentence in told if sentence]
    assert len(sentences) == 1 and sentences[0].startswith("process 1 on host ")
    assert "ms for data" in sentences[0]
