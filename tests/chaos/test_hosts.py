"""Several hosts, as network namespaces: a link that is cut and comes back, a host that dies with
its memory, hosts that differ."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hosts import Hosts, why_not

pytestmark = [pytest.mark.distributed, pytest.mark.long]

SHARDED = ["--cpu-devices", 1, "--mesh.data", 1, "--mesh.fsdp", -1, "--run.steps", 2000]
"""Each host holds a third of the state: when one dies, only the next one has its third."""

RELATIVE = 1e-3
"""2000 steps on three meshes one after the other."""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Hosts("abc")
    yield made
    made.close()


class Run:
    """One launch a host, which meet at host a."""

    def __init__(self, hosts: Hosts, folder: Path, config: Path):
        self.hosts, self.folder, self.config = hosts, folder, config
        for name in hosts.names:
            self.launch(name)

    def launch(self, name: str, *options: object) -> None:
        words = ["--processes", 1, "--elastic", "2:3", "--rendezvous", "10.77.0.1:7777"]
        words += ["--host", name, "--hang-seconds", 60, *options]
        train = ["train", self.config, "--run.directory", self.folder, *SHARDED]
        self.hosts.start(name, self.log(name), "launch", *words, "--", *train)

    def log(self, name: str) -> Path:
        return self.folder.with_name(f"{name}.log")

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return value

    def reaches(self, step: int) -> None:
        self.wait(lambda: len(self.lines("metrics.jsonl")) >= step)

    def generation(self, number: int) -> dict[str, Any]:
        """Waits for the generation to have done a step."""

        def there() -> Any:
            known = [g for g in self.lines("generations.jsonl") if g["number"] == number]
            return known and f"generation {number}:" in self.log("b").read_text() and known[0]

        return self.wait(there)

    def end(self) -> list[float]:
        for name, process in self.hosts.processes.items():
            assert process.wait(240) == 0, (name, self.said())
        records = self.lines("metrics.jsonl")
        assert [record["step"] for record in records] == list(range(1, 2001))
        return [record["loss"] for record in records]

    def said(self) -> str:
        return "\n".join(f"== {n}\n{self.log(n).read_text()[-3000:]}" for n in self.hosts.names)


@pytest.fixture
def undisturbed_shards(research: Any, small_config: Path, tmp_path: Path) -> list[float]:
    folder = tmp_path / "undisturbed"
    words = ["--cpu-devices", 3, *SHARDED[2:]]
    research("train", small_config, "--run.directory", folder, *words)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_cut_link_costs_a_host_for_as_long_as_it_is_cut(
    hosts: Hosts, small_config: Path, tmp_path: Path, undisturbed_shards: list[float]
) -> None:
    run = Run(hosts, tmp_path / "run", small_config)
    run.reaches(60)
    hosts.cut("c")
    run.generation(2)
    time.sleep(2)
    hosts.restore("c")
    assert run.end() == pytest.approx(undisturbed_shards, rel=RELATIVE)
    first, second, third = run.lines("generations.jsonl")[:3]
    assert "host c fell silent" in first["cause"] and first["mesh"] == "fsdp 3"
    assert (second["hosts"], second["mesh"]) == (["a", "b"], "fsdp 2")
    assert second["source"] == "snapshot" and second["lost"] <= 20
    assert second["cause"] == "more processes" and third["hosts"] == ["a", "b", "c"]


def test_a_host_that_dies_with_its_memory_loses_no_shard(
    hosts: Hosts, small_config: Path, tmp_path: Path, undisturbed_shards: list[float]
) -> None:
    run = Run(hosts, tmp_path / "run", small_config)
    run.reaches(60)
    hosts.processes["b"].send_signal(signal.SIGKILL)
    for folder in Path("/dev/shm").glob(f"research-{(run.folder / '.identity').read_text()}-b"):
        shutil.rmtree(folder)
    hosts.processes.pop("b").wait()
    run.wait(lambda: len(run.lines("generations.jsonl")) > 1)
    second = run.lines("generations.jsonl")[1]
    assert second["hosts"] == ["a", "c"]
    run.launch("b")  # it is mended
    assert run.end() == pytest.approx(undisturbed_shards, rel=RELATIVE)
    _, second, third = run.lines("generations.jsonl")[:3]
    assert second["source"] == "snapshot" and second["lost"] <= 20
    assert sorted(third["hosts"]) == ["a", "b", "c"]


def test_a_host_that_has_to_leave_costs_no_step_and_the_others_go_on(
    hosts: Hosts, small_config: Path, tmp_path: Path, undisturbed_shards: list[float]
) -> None:
    run = Run(hosts, tmp_path / "run", small_config)
    run.reaches(60)
    leaving = hosts.processes.pop("c")
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(120) == 75, run.said()
    assert run.end() == pytest.approx(undisturbed_shards, rel=RELATIVE)
    first, second = run.lines("generations.jsonl")
    assert first["cause"] == "SIGTERM"
    assert (second["hosts"], second["lost"]) == (["a", "b"], 0)
    assert second["restored"] == first["step"]


def test_the_host_of_the_rendezvous_may_die_and_come_back(
    hosts: Hosts, small_config: Path, tmp_path: Path, undisturbed_shards: list[float]
) -> None:
    """Its supervisor, its worker and the coordination service at once; the others wait for it."""
    run = Run(hosts, tmp_path / "run", small_config)
    run.reaches(60)
    hosts.processes["a"].kill()
    hosts.processes.pop("a").wait()
    run.wait(lambda: "waiting for the rendezvous" in run.log("b").read_text())
    done = len(run.lines("metrics.jsonl"))
    run.launch("a")
    assert run.end() == pytest.approx(undisturbed_shards, rel=RELATIVE)
    last = run.lines("generations.jsonl")[-1]
    assert sorted(last["hosts"]) == ["a", "b", "c"]
    assert last["source"] == "snapshot" and done - last["restored"] <= 20
