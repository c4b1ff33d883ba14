"""An ensemble, judged: a table of its combinations, its reliability, its NLL over members."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError

if TYPE_CHECKING:  # matplotlib and rich are imported by what draws and prints
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

    from research.reporting.picture import Picture

WIDTH = 120
"""Columns, where no terminal says how many."""
COLUMNS = {
    "nll": "NLL (nats)",
    "error": "error",
    "brier": "Brier",
    "ece": "ECE",
    "ece_adaptive": "adaptive",
    "auroc": "AUROC",
    "aupr": "AUPR",
}


def ensemble_table(content: Mapping[str, Any]) -> "Table":
    """A line a way to combine, of what `evaluate` writes down of an ensemble."""
    from rich import box
    from rich.table import Table

    rows: Mapping[str, Mapping[str, float]] = _of(content)["combinations"]
    there = [name for name in COLUMNS if name in next(iter(rows.values()))]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in there:
        table.add_column(COLUMNS[name], justify="right", no_wrap=True)
    for name, row in rows.items():
        cells = [f"{row[c]:.2%}" if c == "error" else f"{row[c]:.4f}" for c in there]
        table.add_row(name, *cells)
    return table


def print_ensemble(content: Mapping[str, Any], console: "Console | None" = None) -> None:
    """The table, and in a line how far members are from each other, to `console` (standard
    output)."""
    from rich.console import Console

    content = _of(content)
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=WIDTH, file=console.file)
    console.print(ensemble_table(content), highlight=False)
    console.print(
        f"pairs of members disagree on {content['disagreement']:.2%} of the targets and are "
        f"{content['divergence']:.4f} nats apart; the mean of all gains {content['gain']:.4f} nats",
        highlight=False,
    )


def reliability_diagram(content: Mapping[str, Any], path: Path | None = None) -> "Picture":
    """Accuracy over confidence in 15 bins, of a member and of all together; what is calibrated
    lies on the diagonal. Written to `path` (.svg, .png, .pdf) if there is one."""
    from research.reporting.picture import one_picture

    return one_picture(3.8, 3.4, lambda axes: draw_reliability(axes, content), path)


def draw_reliability(axes: "Axes", content: Mapping[str, Any]) -> None:
    """Draws what `reliability_diagram` describes."""
    from research.reporting.picture import INK, QUIET, SERIES

    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle="dashed")
    for color, (name, bins) in zip(SERIES, _of(content)["reliability"].items(), strict=False):
        axes.plot(bins["confidence"], bins["accuracy"], color=color, linewidth=1.1, label=name)
        sizes = [4 + 90 * share**0.5 for share in bins["share"]]
        axes.scatter(bins["confidence"], bins["accuracy"], sizes, color=color, alpha=0.6)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title("area of a dot: its share of all answers", size=8)
    axes.legend(loc="upper left", labelcolor=INK)


def nll_over_members(content: Mapping[str, Any], path: Path | None = None) -> "Picture":
    """NLL of the first 1, 2, ... members together, beside every member's own. Written to `path`
    (.svg, .png, .pdf) if there is one."""
    from research.reporting.picture import one_picture

    return one_picture(4.6, 3.2, lambda axes: draw_nll(axes, content), path)


def draw_nll(axes: "Axes", content: Mapping[str, Any]) -> None:
    """Draws what `nll_over_members` describes."""
    from matplotlib.ticker import MaxNLocator

    from research.reporting.picture import INK, QUIET, SERIES

    content = _of(content)
    together = [row["nll"] for row in content["by_members"]]
    own = [row["nll"] for row in content["members"]]
    numbers = range(1, len(own) + 1)
    axes.plot(numbers, own, "o", markersize=3, color=QUIET, label="each member alone")
    axes.plot(numbers, together, color=SERIES[0], linewidth=1.4, label="the first M together")
    axes.set_xlabel("members M")
    axes.set_ylabel("test NLL (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(labelcolor=INK)


def _of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    if "ensemble" in content:
        content = content["ensemble"]
    if "combinations" not in content:
        raise UserError("this evaluation is of no ensemble: train with --ensemble.rule deep")
    return content
