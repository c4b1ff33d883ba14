"""Pictures of runs that lost machines, and of what that costs a large one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.planning.goodput import WAYS, Assumptions, goodput

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

    from research.reporting.picture import Picture

DEVICES = (8, 64, 512, 4096, 16_384, 100_000)

NAMES = {
    "synchronous": "synchronous, from checkpoints",
    "elastic": "elastic, from memory",
    "diloco": "islands that meet (DiLoCo, quorum)",
}


def read_generations(run: Path) -> list[dict[str, Any]]:
    """The generations of an elastic run, as in `generations.jsonl`.

    Raises UserError for a folder without.
    """
    path = run / "generations.jsonl"
    if not path.is_file():
        raise UserError(f"{run} has no generations.jsonl: it was no run of an elastic launch")
    return [json.loads(line) for line in path.read_text().splitlines()]


def generations(run: Path, path: Path | None = None) -> "Picture":
    """Steps of an elastic run over the seconds since its launch: a line for each generation with
    its processes and mesh, gaps where nobody trained, and what ended it.

    The figure is written to `path` (.svg, .png, .pdf) if there is one. Raises as
    `read_generations`.
    """
    from research.reporting.picture import one_picture

    known = read_generations(run)
    return one_picture(6.4, 3.4, lambda axes: draw_generations(axes, known), path)


def draw_generations(axes: "Axes", known: Sequence[dict[str, Any]]) -> None:
    """Draws what `generations` describes."""
    from research.reporting.picture import INK, QUIET, SERIES

    most = max(generation["processes"] for generation in known)
    for generation in known:
        first, end = generation["first_step"], generation["ended"]
        if first is None:
            continue
        begin = generation["restored"] or 0
        full = generation["processes"] == most
        color = SERIES[0] if full else SERIES[1]
        axes.plot([first, end], [begin, generation["step"]], color=color, linewidth=2)
        axes.annotate(
            f"{generation['processes']} processes, {generation['mesh']}",
            ((first + end) / 2, (begin + generation["step"]) / 2),
            (6, -9),
            textcoords="offset points",
            color=color,
            fontsize=8,
        )
        axes.plot(end, generation["step"], "o", color=INK, markersize=3.5)
        axes.annotate(
            _short(generation["cause"]),
            (end, generation["step"]),
            (-6, 5),
            textcoords="offset points",
            ha="right",
            color=QUIET,
            fontsize=8,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.set_xlabel("seconds since the launch")
    axes.set_ylabel("steps done")
    axes.grid(axis="y")


def goodputs(
    assumed: Assumptions | None = None, days: float = 30, seeds: int = 3, path: Path | None = None
) -> "Picture":
    """Goodput of three ways to train over the number of devices, simulated in virtual time with
    `research.planning.goodput`. The figure is written to `path` if there is one."""
    from research.reporting.picture import SERIES, one_picture

    assumptions = assumed or Assumptions()

    def draw(axes: "Axes") -> None:
        for way, color in zip(WAYS, SERIES, strict=False):
            shares = [
                sum(goodput(way, n, assumptions, days, seed) for seed in range(seeds)) / seeds
                for n in DEVICES
            ]
            axes.plot(DEVICES, shares, "o-", color=color, markersize=3.5, label=NAMES[way])
        axes.set_xscale("log")
        axes.set_xticks(DEVICES, [f"{n:,}" for n in DEVICES], fontsize=8)
        axes.minorticks_off()
        axes.set_ylim(0, 1.03)
        axes.set_xlabel(
            f"devices; one of them fails every {assumptions.between_failures / 3.6e6:.0f} "
            "thousand hours of its own"
        )
        axes.set_ylabel("goodput")
        axes.grid(axis="y")
        axes.legend(loc="lower left")

    return one_picture(5.6, 3.2, draw, path)


def _short(cause: str) -> str:
    """The cause in the few words that fit."""
    for sign, words in (
        ("SIGKILL", "killed"),
        ("stopped by a signal", "hung"),
        ("more processes", "it is back"),
        ("fell silent", "host lost"),
        ("SIGTERM", "told to leave"),
        ("finished", "done"),
    ):
        if sign in cause:
            return words
    return cause[:24]
