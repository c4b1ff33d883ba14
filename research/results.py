"""The finished runs of a reproduction, and what they measured."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research import trained
from research.configuration import nearest
from research.errors import UserError
from research.training.folder import RunFolder
from research.training.metrics import Record, read


class Run(NamedTuple):
    """A finished run of one variant with one seed."""

    folder: Path
    seed: int
    diverged: bool = False
    """It ended early: its loss was no longer finite."""

    def records(self) -> list[Record]:
        """What it logged, as in `metrics.jsonl`."""
        return read(RunFolder(self.folder).metrics)

    def last(self, metric: str) -> float:
        """The last logged value of `metric`, such as `validation_loss` or `bytes_sent_total`.

        Raises UserError naming the nearest metric where none has that name.
        """
        records = self.records()
        values = [record[metric] for record in records if metric in record]
        if not values:
            known = sorted({name for record in records for name in record})
            raise UserError(f"{self.folder} has logged no {metric}: {nearest(metric, known)}")
        return float(values[-1])

    def test(self, metric: str) -> float:
        """`loss`, `accuracy` or `perplexity` of the last checkpoint on the test split, evaluated
        when first asked for; nan of a run that diverged."""
        if self.diverged:
            return math.nan
        folder = RunFolder(self.folder)
        steps = folder.read("config")["run"]["steps"]
        done = (self.folder / "evaluation.json").exists() and folder.read("evaluation")
        if not done or done["step"] != steps:
            done = trained.evaluate(self.folder)
        return float(done[metric])


class Results:
    """The finished runs of a reproduction, by variant, in the order of the seeds."""

    def __init__(self, finished: Mapping[str, Sequence[Run]]):
        self.runs = finished

    def last(self, variant: str, metric: str) -> np.ndarray:
        """`Run.last` of a variant, [seeds]."""
        return np.array([run.last(metric) for run in self.runs[variant]])

    def test(self, variant: str, metric: str) -> np.ndarray:
        """`Run.test` of a variant, [seeds]."""
        return np.array([run.test(metric) for run in self.runs[variant]])

    def diverged(self, variant: str) -> list[int]:
        """The seeds with which a variant diverged."""
        return [run.seed for run in self.runs[variant] if run.diverged]

    def curves(self, x: str, y: str) -> dict[str, list[tuple[list[float], list[float]]]]:
        """Of every variant and seed, the values of `x` and `y` in the records that have both."""

        def curve(run: Run) -> tuple[list[float], list[float]]:
            both = [record for record in run.records() if x in record and y in record]
            return [record[x] for record in both], [record[y] for record in both]

        return {variant: [curve(run) for run in some] for variant, some in self.runs.items()}
