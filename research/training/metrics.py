"""What a run writes down: JSONL always, TensorBoard and Weights & Biases beside it."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from research.errors import UserError

Record = dict[str, float | int]


class Tracker(Protocol):
    """Takes the record of every logged step."""

    def log(self, record: Record) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a logged step, written through at once, so that a crash loses
    none."""

    def __init__(self, path: Path):
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def log(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard events of every number in a record."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        # What an earlier process logged beyond `step` is purged: those steps are done again.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run of the same name as the run folder."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"--run.wandb-project {project} needs the wandb package: "
                "pip install 'reigen[wandb]', or leave the option out"
            ) from None
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=folder.name,
            dir=str(folder),
            config=config,
            resume="allow",
        )

    def log(self, record: Record) -> None:
        self._run.log(record, step=int(record["step"]))

    def close(self) -> None:
        self._run.finish()


def read(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl`; a last line torn by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def keep_until(path: Path, step: int) -> list[Record]:
    """Drops the records beyond `step`, which are about to be made again; returns those kept."""
    kept = [record for record in read(path) if record["step"] <= step]
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(part, path)
    return kept
