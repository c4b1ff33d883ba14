"""One process alone: no cost, no coordinator, clear mistakes; and signals that ask for a stop."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from research.errors import UserError
from research.parallel import processes
from research.parallel.stopping import StopRequest

ROOT = Path(__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", **environment},
    )


def test_one_process_is_the_first_and_waits_for_nobody() -> None:
    assert processes.is_first()
    assert (processes.index(), processes.count()) == (0, 1)
    processes.barrier("nobody else")


def test_no_jax_is_imported_before_initialize() -> None:
    result = python(
        """
        import sys
        import research.parallel.launch, research.parallel.processes as processes
        import research.parallel.stopping
        assert processes.is_first() and processes.count() == 1
        assert "jax" not in sys.modules
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "RESEARCH_PROCESSES is ''"),
        ({"RESEARCH_PROCESSES": "two", "RESEARCH_PROCESS": "0"}, "RESEARCH_PROCESSES is 'two'"),
        ({"RESEARCH_PROCESSES": "2", "RESEARCH_PROCESS": "2"}, "numbered from 0"),
        (
            {
                "RESEARCH_PROCESSES": "2",
                "RESEARCH_PROCESS": "0",
                "RESEARCH_COORDINATOR": "somewhere",
            },
            "must be host:port",
        ),
    ],
)
def test_variables_that_make_no_sense_are_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    for name, value in {"RESEARCH_COORDINATOR": "127.0.0.1:1", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        processes.initialize()


def test_fewer_than_one_cpu_device_is_a_mistake() -> None:
    with pytest.raises(UserError, match="--cpu-devices is 0"):
        processes.initialize(cpu_devices=0)


@pytest.mark.distributed
def test_virtual_devices_and_a_rendezvous_that_fails() -> None:
    """Nobody serves the coordinator's port: one sentence in time, where JAX itself would abort."""
    result = python(
        """
        from research.errors import UserError
        from research.parallel import processes
        processes.RENDEZVOUS_SECONDS = 1
        try:
            processes.initialize(cpu_devices=3)
        except UserError as error:
            print(error)
            processes.leave(2)
        """,
        RESEARCH_COORDINATOR="127.0.0.1:1",
        RESEARCH_PROCESSES="2",
        RESEARCH_PROCESS="1",
    )
    assert result.returncode == 2, result.stderr
    assert "process 1 of 2 waited 1 s for the others at 127.0.0.1:1" in result.stdout

    result = python(
        """
        from research.parallel import processes
        processes.initialize(cpu_devices=3)
        import jax
        print(jax.device_count(), jax.default_backend())
        """
    )
    assert result.stdout.split() == ["3", "cpu"], result.stderr


def test_a_coordinator_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}"):
            processes._check_port("127.0.0.1", port)
    processes._check_port("127.0.0.1", port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.reached(0)
        assert stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.reached(1)
        assert stop.signal_name == number.name
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"{number.name}: stopping after this step\n"


def test_a_second_interrupt_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_can_be_asked_for_without_a_signal() -> None:
    with StopRequest() as stop:
        stop.ask("8 hours are over")
        assert stop.reached(3)
        assert stop.signal_name == "8 hours are over"
