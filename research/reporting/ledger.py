"""The reproduction ledger: a paper's numbers, ours beside them, and whether the two agree.

`paper.json` of an experiment's folder holds what the paper printed, each number with its table or
figure, and is written by hand; `results.json` holds the rows that were measured, and is written by
`research reproduce` only.
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from research.configuration import check_names, nearest
from research.errors import UserError

Holds = Literal["equal", "at most", "at least"]
WIDTH = 140
"""Columns, where no terminal says how many."""
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
"""Between them stands the table of a README."""


class Number(NamedTuple):
    """What a paper printed."""

    name: str
    value: float
    unit: str
    source: str  # table, figure or section


class Measurement(NamedTuple):
    """What we measured, and how near to the paper's number it has to be."""

    name: str  # that of the paper's number, if it has one
    values: float | Sequence[float]  # one a seed; alone: nothing in it is drawn; none: not run
    unit: str
    tolerance: float = 0.0  # in `unit`
    holds: Holds = "equal"  # ours to the paper's
    because: str = ""  # what of the set-up explains a difference that is known beforehand
    diverged: Sequence[int] = ()  # seeds whose run did: their values are left out, and it is said
    limit: float | None = None  # in `unit`, how long was waited: a value of inf is "not in" so much


class Provenance(NamedTuple):
    """Where rows come from."""

    command: str
    hardware: str
    versions: dict[str, str]
    commit: str  # of the code; "+changes": files differed from it


@dataclass(frozen=True)
class Row:
    """One line of `results.json`."""

    name: str
    paper: float | None
    """The paper's number (None: it has none that compares)."""
    ours: float | None
    """The mean over the seeds that got there and did not diverge (None: no seed, or not run)."""
    unit: str
    source: str | None
    """Table, figure or section of the paper's number."""
    spread: float | None
    """Standard deviation over the same seeds (None: fewer than two)."""
    tolerance: float
    holds: Holds
    because: str
    seeds: list[int]
    """None of them where nothing is drawn, or nothing was run."""
    command: str
    hardware: str
    versions: dict[str, str]
    commit: str
    diverged: list[int] = field(default_factory=list)
    """Of the seeds, those whose run did not get to its end."""
    limit: float | None = None
    """How long was waited for what is measured, in `unit` (None: for as long as it takes)."""
    missed: list[int] = field(default_factory=list)
    """Of the seeds, those with which it did not come within the limit."""

    @property
    def was_run(self) -> bool:
        """Whether anything was: some things are left to other machines."""
        return self.ours is not None or len(self.seeds) > 0

    @property
    def agrees(self) -> bool | None:
        """Whether ours holds beside the paper's within the tolerance; None without a paper's, or
        without ours. With a seed that diverged, or did not get there, it does not."""
        if self.paper is None or not self.was_run:
            return None
        if self.diverged or self.missed or self.ours is None:
            return False
        above = self.ours - self.paper
        below_enough = above <= self.tolerance or self.holds == "at least"
        above_enough = -above <= self.tolerance or self.holds == "at most"
        return below_enough and above_enough


def read_paper(path: Path) -> list[Number]:
    """The numbers of a `paper.json`.

    Raises UserError naming what it lacks: title, authors, year, url, and numbers of name, value,
    unit and source.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it holds the paper's numbers") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    _check_keys(content, ("title", "authors", "year", "url", "numbers"), ("claims",), str(path))
    for entry in content["numbers"]:
        _check_keys(entry, Number._fields, (), f"{path}, a number")
    return [Number(**entry) for entry in content["numbers"]]


def _check_keys(
    content: dict[str, Any], needed: tuple[str, ...], more: tuple[str, ...], where: str
) -> None:
    check_names(content, [*needed, *more], where)
    for name in needed:
        if name not in content:
            raise UserError(f"{where} has no `{name}`")


def compare(
    numbers: Sequence[Number],
    measurements: Sequence[Measurement],
    seeds: Sequence[int],
    provenance: Provenance,
) -> list[Row]:
    """A row for every measurement, in their order, with the paper's number of the same name.

    Raises UserError for a number of the paper that is not measured, for units that differ, for a
    name that comes twice, and for a value that is not finite though its run did not diverge (inf
    where there is a limit: not within it).
    """
    measured = [measurement.name for measurement in measurements]
    if doubles := {name for name in measured if measured.count(name) > 1}:
        raise UserError(f"{doubles.pop()!r} is measured twice: rows are told apart by their names")
    for number in numbers:
        if number.name not in measured:
            hint = nearest(number.name, measured)
            raise UserError(f"the paper's number {number.name!r} is not measured: {hint}")
    printed = {number.name: number for number in numbers}
    return [_row(printed.get(m.name), m, list(seeds), provenance) for m in measurements]


def _row(paper: Number | None, ours: Measurement, seeds: list[int], provenance: Provenance) -> Row:
    drawn = np.ndim(ours.values) > 0 and np.size(ours.values) > 0
    values = np.atleast_1d(np.asarray(ours.values, np.float64)).tolist()
    if drawn and len(values) != len(seeds):
        raise UserError(f"{ours.name!r} has {len(values)} values for {len(seeds)} seeds")
    missed: list[int] = []
    if drawn:
        kept = [
            (v, seed) for v, seed in zip(values, seeds, strict=True) if seed not in ours.diverged
        ]
        if ours.limit is not None:
            missed = [seed for v, seed in kept if v == math.inf]
        values = [v for v, seed in kept if seed not in missed]
    if not all(map(math.isfinite, values)):
        raise UserError(f"{ours.name!r} is not finite: {values}")
    if paper is not None and paper.unit != ours.unit:
        raise UserError(
            f"{ours.name!r} is in {paper.unit!r} in the paper, and ours in {ours.unit!r}"
        )
    return Row(
        name=ours.name,
        paper=None if paper is None else paper.value,
        ours=statistics.fmean(values) if values else None,
        unit=ours.unit,
        source=None if paper is None else paper.source,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        tolerance=ours.tolerance,
        holds=ours.holds,
        because=ours.because,
        seeds=seeds if drawn else [],
        **provenance._asdict(),
        diverged=list(ours.diverged),
        limit=ours.limit,
        missed=missed,
    )


# What people read -------------------------------------------------------------------------------


def print_rows(rows: Sequence[Row], title: str, console: Console | None = None) -> None:
    """The table of paper and ours, and in plain sentences where they differ."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("paper", "ours") else "left")
    for row in rows:
        table.add_row(*_cells(row), style="yellow" if row.agrees is False else None)
    console.print(table, highlight=False)
    for line in statement(rows):
        console.print(line, highlight=False, soft_wrap=True)


HEADINGS = ("what", "paper", "ours", "unit", "seeds", "beside the paper")


def _cells(row: Row) -> tuple[str, ...]:
    sign = {"equal": "", "at most": "≤ ", "at least": "≥ "}[row.holds]
    lacking = "no number to compare" if row.was_run else ""
    verdict = {None: lacking, True: "agrees", False: "differs"}[row.agrees]
    return (
        row.name,
        "" if row.paper is None else sign + figures(row.paper),
        _mean(row),
        row.unit,
        str(len(row.seeds) or ""),
        verdict,
    )


def _mean(row: Row, unit: str = "") -> str:
    """Ours, and how many runs it is not of; with its spread where the unit stands elsewhere."""
    if not row.was_run:
        return "not run here"
    lost = []
    if row.diverged:
        lost.append(f"{len(row.diverged)} of {len(row.seeds)} diverged")
    if row.missed:
        assert row.limit is not None
        within = f"{figures(row.limit)} {row.unit}"
        lost.append(f"{len(row.missed)} of {len(row.seeds)} not in {within}")
    if row.ours is None:
        return ", ".join(lost)
    spread = "" if row.spread is None else f" ± {figures(row.spread, row.spread)}"
    mean = figures(row.ours, row.spread) + (f" {unit}" if unit else spread)
    return ", ".join([mean, *lost])


def figures(value: float, spread: float | None = None) -> str:
    """`value` with as many digits as it deserves: two of its spread, else four of its own."""
    size, digits = (abs(spread), 2) if spread else (abs(value), 4)
    places = digits - 1 - math.floor(math.log10(size)) if size else 0
    text = f"{value:,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not spread else text


def statement(rows: Sequence[Row]) -> list[str]:
    """In plain words, how ours stands to the paper's: a count, and a line for each difference; and
    what means are of, where runs diverged."""
    compared = [row for row in rows if row.agrees is not None]
    some = [row for row in rows if row.ours is not None]
    why = ["did not diverge"] if any(row.diverged for row in some) else []
    why += ["got there"] if any(row.missed for row in some) else []
    means = [f"Means are over the seeds that {' and '.join(why)}."] if why else []
    if missing := sum(not row.was_run for row in rows):
        means.append(f"{missing} of {len(rows)} rows were not run here.")
    if not compared:
        return ["The paper has no number that compares.", *means]
    differ = [row for row in compared if not row.agrees]
    lines = [f"{len(compared) - len(differ)} of {len(compared)} numbers agree with the paper's."]
    for row in differ:
        assert row.paper is not None
        wanted = ("" if row.holds == "equal" else f"{row.holds} ") + figures(row.paper)
        line = (
            f"Ours differs: {row.name}: {_mean(row, row.unit)}, where the paper has {wanted} "
            f"({row.source}; tolerance {figures(row.tolerance)})"
        )
        lines.append(line + (f": {row.because}" if row.because else ""))
    return lines + means


def markdown(rows: Sequence[Row]) -> str:
    """The same table, and sentences, for a README."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*table, "", *statement(rows)])


# Files ------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes `results.json` whole or not at all."""
    _replace(path, json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return [Row(**content) for content in json.loads(path.read_text(encoding="utf-8"))]


def write_table(readme: Path, rows: Sequence[Row]) -> None:
    """Puts the table between the two marks of a README; does nothing where it has none."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        _replace(readme, f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
