"""What cannot be launched is told in one sentence, by numbers and names, before anything starts."""

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from research.cli import main
from research.deployment.elastic.members import Members
from research.deployment.elastic.options import Options
from research.deployment.elastic.supervisor import launch_elastic

IDLE = [sys.executable, "-c", "import time; time.sleep(600)"]
"""A worker that never comes so far."""

TRAIN = ["--", "train", "config.py"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--elastic", "3:2", *TRAIN], "--elastic 3:2 must be LEAST:MOST processes"),
        (["--elastic", "two", *TRAIN], "--elastic two must be LEAST:MOST processes"),
        (["--elastic", "3:4", *TRAIN], "--processes 2 are fewer than the 3 of --elastic 3:4"),
        (["--rendezvous", "a:1", *TRAIN], "--rendezvous is of an elastic launch"),
        (
            ["--elastic", "2:4", "--rendezvous", "here", *TRAIN],
            "--rendezvous here must be HOST:PORT",
        ),
        (["--elastic", "2:2", "--", "plan", "config.py"], "cannot launch 'plan'"),
    ],
)
def test_mistakes_are_named(
    words: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["launch", "--processes", "2", *words])
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (TRAIN, "say how many: --processes 4, or --engine ray for asynchronous workers"),
        (["--engine", "ray", "--processes", "2", *TRAIN], "--processes is of a synchronous launch"),
        (["--engine", "ray", "--elastic", "2:4", *TRAIN], "--elastic is of a synchronous launch"),
        (["--engine", "ray", "--", "evaluate", "run"], "give train or resume after --"),
        (["--engine", "ray", "--", "train", "none.py"], "there is no config file none.py"),
        (
            ["--engine", "ray", "--", "train", "configs/digits.py"],
            "--engine ray runs workers around a server, and --asynchronous.rule is none: use plain",
        ),
        (
            ["--engine", "ray", "--", "train", "configs/digits_server.py", "--mesh.replica", "2"],
            "with --engine ray each has a process and a mesh of its own: use --mesh.replica 1",
        ),
        (
            ["--engine", "ray", "--", "train", "configs/digits_server.py"],
            "--engine ray needs Ray, which is not installed here: run `make setup EXTRA=ray`",
        ),
    ],
)
def test_mistakes_of_an_engine_are_named(
    words: list[str],
    sentence: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(SystemExit, match="2"):
        main(["launch", *words])
    assert sentence in capfd.readouterr().err


def test_a_rendezvous_that_nobody_answers_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    """192.0.2.1 is of a network for documentation: no host has it."""
    options = Options(
        ["train", "x.py"], 1, 1, 2, "192.0.2.1:7777", "b", give_up_seconds=1, standby=False
    )
    began = time.monotonic()
    assert launch_elastic(options, program=IDLE) == 2
    assert time.monotonic() - began < 30
    said = capfd.readouterr().err
    assert "nobody answers at the rendezvous 192.0.2.1:7777" in said and "host b" in said


def test_too_few_processes_are_waited_for_and_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = Options(
        ["train", "x.py"], 1, 2, 2, f"127.0.0.1:{port}", "a", give_up_seconds=2, standby=False
    )
    assert launch_elastic(options, program=IDLE) == 75
    said = capfd.readouterr().err
    assert "1 of at least 2 processes are there after 2 s (hosts: a with 1)" in said


def test_two_launches_cannot_resume_one_run(tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / ".launch-a", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Exception, match="another launch on a has"):
            launch_elastic(Options(["resume", str(tmp_path)], 1, 1, 1, None, "a"))


class Link:
    """As much of a connection as a welcome looks at."""

    def __init__(self, peer: str):
        self.peer = peer


def hello(name: str, **identity: str) -> dict[str, Any]:
    return {"hello": name, "slots": 1, "identity": {"jax": "1"} | identity, "copies": 1}


def test_hosts_that_do_not_fit_are_sent_away_with_a_reason() -> None:
    members = Members(several=True)
    first: Any = Link("10.0.0.1")
    assert members.welcome(first, hello("a")) is None
    other: Any = Link("10.0.0.2")
    assert "a host a is there already" in str(members.welcome(other, hello("a")))
    said = members.welcome(other, hello("b", jax="2"))
    assert said == "host b has another jax than host a (2 and 1): make them the same on every host"
    loop: Any = Link("127.0.1.1")
    said = members.welcome(loop, hello("c"))
    assert said is not None and said.startswith("host c comes to the rendezvous from 127.0.1.1")
    assert members.welcome(other, hello("b")) is None and len(members) == 2


@pytest.mark.distributed
def test_a_config_that_is_not_there_is_told_by_the_workers_that_stand_by(
    research: Any, tmp_path: Path
) -> None:
    words = ["launch", "--processes", 2, "--elastic", "1:2", "--", "train", tmp_path / "no.py"]
    done = research(*words, status=2)
    assert f"error: there is no config file {tmp_path / 'no.py'}" in done.stderr
