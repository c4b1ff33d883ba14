"""The run that an elastic launch trains, as its workers tell of it: what it asks for, where it
lies, and the command by which the next generation goes on with it."""

from pathlib import Path
from typing import Any

from research.deployment.elastic.layout import Declared, Layout, largest
from research.deployment.elastic.options import Options


class Run:
    """Of one launch; nothing is known of it at first."""

    def __init__(self, options: Options):
        self._options = options
        self.place: dict[str, str] = {}
        """Its identity and its folder, once it has them."""
        self._declared: dict[str, Any] | None = None

    def declare(self, declared: dict[str, Any]) -> bool:
        """Takes what a worker says that its config asks for; returns whether it is the same run's.

        Raises UserError where the most processes cannot train it.
        """
        if self._declared is None:
            self._declared = declared
            self.fit(self._options.most)
        # A config may be edited when its run has begun: what counts then is in the run's folder.
        return bool(self.place) or declared["digest"] == self._declared["digest"]

    def begins(self, facts: dict[str, Any]) -> bool:
        """Takes what a worker tells; returns whether it says where the run lies."""
        if "devices" in facts and self._declared is not None:
            self._declared["devices"] = facts["devices"]
        if not facts.get("identity"):
            return False
        self.place = {"identity": facts["identity"], "folder": facts["folder"]}
        return True

    @property
    def is_declared(self) -> bool:
        """Whether some worker has read the config."""
        return self._declared is not None

    @property
    def folder(self) -> str | None:
        return self.place.get("folder")

    @property
    def identity(self) -> str:
        return self.place.get("identity", "")

    @property
    def snapshot_every(self) -> int:
        """Steps; 0: no snapshots."""
        return self._declared["snapshot_every"] if self._declared else 0

    def fit(self, there: int) -> Layout:
        """The mesh of so many processes. Raises UserError where there is none."""
        assert self._declared is not None
        names = ("mesh", "replicas", "batch", "microbatches")
        known = {name: self._declared[name] for name in names}
        # How many accelerators a process has is known when it has used them.
        declared = Declared(**known, devices=self._declared["devices"] or 1)
        return largest(declared, there, self._options.least, self._options.most)

    def words(self, layout: Layout) -> list[str]:
        """The command of a generation: a run that was begun is resumed."""
        words = self._command()
        if self._declared is not None and self._declared["devices"] is not None:
            words = [*words, *layout.words()]
        return words

    def how_to_go_on(self) -> str:
        """The command for whoever stopped it."""
        least, most = self._options.least, self._options.most
        folder = self.folder or "RUN"
        return f"go on with `research launch --elastic {least}:{most} ... -- resume {folder}`"

    def _command(self) -> list[str]:
        command, folder = self._options.command, self.folder
        if folder is None:
            return command
        if command[0] == "resume":
            return [command[0], folder, *command[2:]]
        if not (Path(folder) / "config.json").exists():
            return [*command, "--run.directory", folder]
        devices = [
            word
            for before, word in zip(["", *command], command, strict=False)
            if word.startswith("--cpu-devices") or before == "--cpu-devices"
        ]
        return ["resume", folder, *devices]
