"""Several hosts on this machine: network namespaces, each with one link to a common switch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def ip(*words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(words)}: {done.stderr}"
    return done.returncode == 0


def why_not() -> str | None:
    """Why there can be no namespaces here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (iproute2)"
    name = f"reigen-{os.getpid()}-try"
    if not ip("netns", "add", name, check=False):
        return "this machine makes no network namespaces"
    try:
        if not ip("-n", name, "link", "add", "switch", "type", "bridge", check=False):
            return "this machine makes no bridges"
        link = ("link", "add", "one", "type", "veth", "peer", "name", "other")
        return None if ip("-n", name, *link, check=False) else "this machine makes no veth pairs"
    finally:
        ip("netns", "del", name)


class Hosts:
    """Namespaces `a`, `b`, ... with addresses 10.77.0.1, .2, ... on one switch."""

    def __init__(self, names: str):
        self.names = names
        self._mark = f"reigen-{os.getpid()}"
        self._switch = f"{self._mark}-switch"
        self.processes: dict[str, Any] = {}
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        for i, name in enumerate(names):
            space = self.space(name)
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            peer = ("peer", "name", name, "netns", self._switch)
            ip("-n", space, "link", "add", "eth0", "type", "veth", *peer)
            ip("-n", space, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", self._switch, "link", "set", "dev", name, "master", "switch")
            ip("-n", self._switch, "link", "set", "dev", name, "up")

    def space(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def start(self, name: str, log: Path, *words: object) -> None:
        """`research ...` on a host, its output into `log`."""
        prefix = ["ip", "netns", "exec", self.space(name)]
        with open(log, "a") as out:
            self.processes[name] = subprocess.Popen(
                [*prefix, sys.executable, "-m", "research", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )

    def cut(self, name: str) -> None:
        """Nothing passes between the host and the others."""
        ip("-n", self._switch, "link", "set", "dev", name, "down")

    def restore(self, name: str) -> None:
        ip("-n", self._switch, "link", "set", "dev", name, "up")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for name in self.names:
            ip("netns", "del", self.space(name))
        ip("netns", "del", self._switch)
