"""A SLURM cluster of this machine alone: munged, slurmctld and slurmd, in a folder of their own."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo")
PATH = f"{os.environ['PATH']}:/usr/sbin"

CONFIG = """
ClusterName=reigen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# Also how long a job that is queued again has to wait: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why there can be no cluster here."""
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """One node; `environment` is that of whoever submits a job."""

    def __init__(self, folder: Path):
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        self._key = folder / "munge.key"
        self._key.write_bytes(os.urandom(1024))
        self._key.chmod(0o400)
        config = folder / "slurm.conf"
        name = socket.gethostname()
        text = CONFIG.format(host=name, ports=_ports(2), folder=folder, cores=os.cpu_count())
        config.write_text(text)
        self.environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(config)}
        self._daemons: list[subprocess.Popen[bytes]] = []
        files = {"key-file": self._key, "socket": folder / "munge.socket"}
        files |= {f"{what}-file": folder / f"munge.{what}" for what in ("pid", "log", "seed")}
        munge = [f"--{option}={path}" for option, path in files.items()]
        self._start(folder, "munged", "--force", "--foreground", *munge)
        _until((folder / "munge.socket").exists)
        self._start(folder, "slurmctld", "-D", "-f", str(config))
        self._start(folder, "slurmd", "-D", "-f", str(config))
        _until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t", check=False))

    def run(self, *words: object, check: bool = True) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            list(map(str, words)), env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0 or not check, (words, done.stderr)
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job, by the names that it prints."""
        text = self.run("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def close(self) -> None:
        self.run("scancel", "--state=RUNNING", check=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(30)

    def _start(self, folder: Path, *words: str) -> None:
        with open(folder / f"{words[0]}.out", "wb") as out:
            self._daemons.append(
                subprocess.Popen(
                    list(words), env=self.environment, stdout=out, stderr=subprocess.STDOUT
                )
            )


def _until(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _ports(count: int) -> list[int]:
    """Ports that are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
