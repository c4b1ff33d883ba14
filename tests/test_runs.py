"""What the commands do with an experiment, where several processes are not equally quick."""

import sys
from pathlib import Path

import pytest

from research.parallel.launch import launch

SLOW_TO_COMPILE = """
import os, sys, time
import jax
from research.cli import main

compile_program = jax.stages.Lowered.compile

def slowly(self, *arguments, **keywords):
    if os.environ["RESEARCH_PROCESS"] == "1":
        time.sleep(35)
    return compile_program(self, *arguments, **keywords)

jax.stages.Lowered.compile = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.distributed
def test_a_process_that_compiles_for_longer_is_waited_for(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX's CPU collectives wait 30 s for the other processes to join; only process 0 finds its
    programs in the compilation cache."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (tmp_path / "slow.py").write_text(SLOW_TO_COMPILE)
    words = ["--cpu-devices", "1", "--mesh.data", "2", "--run.steps", "2"]
    program = [sys.executable, str(tmp_path / "slow.py")]
    folder = ["--run.directory", str(tmp_path / "run"), "--run.sample-tokens", "3"]
    assert launch(2, ["train", str(config), *words, *folder], program=program) == 0
