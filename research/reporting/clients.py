"""Who has which labels: a picture of the clients of a split, and a table of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research.data import Clients
from research.errors import UserError

if TYPE_CHECKING:  # matplotlib and rich are imported by what draws and prints
    from matplotlib.axes import Axes
    from rich.table import Table

    from research.reporting.picture import Picture

Summary = Clients | Mapping[str, Any]
"""Clients, or what a run folder keeps of them (`Clients.to_json`)."""

NAMED = 16
"""Clients up to which each is a row with its name; more are columns side by side."""
COLUMNS = 120
"""Columns at most: of more clients a sample is drawn, evenly spread over their sizes."""
HUES = 5
COLORED = 2 * HUES
"""Labels at most that have a color of their own; the rarest of more share one."""
LISTED = 20
"""Clients at most in a table: of more the same sample is listed."""


def client_labels(
    clients: Summary, path: Path | None = None, labels: Sequence[str] = ()
) -> "Picture":
    """How many examples of each label every client has: a bar a client, a color a label.

    Up to NAMED clients are rows in their own order, more are columns from the largest client to the
    smallest. For text the bars are of tokens predicted. `labels` names the labels; they have their
    numbers otherwise. The figure is written to `path` (.svg, .png, .pdf) if there is one. Raises
    UserError where there is no client.
    """
    from research.reporting.picture import one_picture

    rows = len(_content(clients)["sizes"])
    height = 0.9 + 0.26 * max(rows, 3) if rows <= NAMED else 3.0
    return one_picture(6.4, height, lambda axes: draw_client_labels(axes, clients, labels), path)


def draw_client_labels(axes: "Axes", clients: Summary, labels: Sequence[str] = ()) -> None:
    """Draws what `client_labels` describes."""
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import StrMethodFormatter

    from research.reporting.picture import INK, RULE, SERIES

    content = _content(clients)
    histogram, groups = _grouped(np.array(content["histogram"]), labels)
    count = len(histogram)
    drawn = np.arange(count) if count <= NAMED else _sample(content, COLUMNS)
    ends = np.cumsum(histogram[drawn], axis=1)  # [drawn, groups]
    for group, name in enumerate(groups):
        # Five hues, the second time lighter.
        lightness = 0.5 if group >= HUES else 0.0
        color = tuple(part + (1 - part) * lightness for part in to_rgb(SERIES[group % HUES]))
        if group == COLORED:
            color = to_rgb(RULE)
        start = ends[:, group - 1] if group else np.zeros(len(drawn))
        size = ends[:, group] - start
        if count <= NAMED:
            axes.barh(np.arange(count), size, 0.78, start, color=color, label=name)
        else:
            width = 1.0 if len(drawn) > 60 else 0.86
            axes.bar(np.arange(len(drawn)), size, width, start, color=color, label=name)
    unit = "tokens" if histogram.sum() > content["examples"] else "examples"
    if count <= NAMED:
        axes.set_yticks(range(count), content["names"])
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xlabel(unit)
    else:
        of = f"{len(drawn)} of {count:,} clients" if len(drawn) < count else f"{count} clients"
        axes.set_xticks([])
        axes.set_xlim(-0.5, len(drawn) - 0.5)
        axes.set_xlabel(f"{of}, by size")
        axes.set_ylabel(unit)
    length = axes.xaxis if count <= NAMED else axes.yaxis
    length.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(length=0)
    axes.set_title(_title(content), size=9)
    axes.legend(
        title="label",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        labelcolor=INK,
        fontsize=7.5,
        title_fontsize=7.5,
        handlelength=0.9,
        handleheight=0.9,
        labelspacing=0.25,
    )


def client_table(clients: Summary) -> "Table":
    """A line a client, to be printed by rich: examples, labels, the most frequent one, distance.

    Of more than LISTED clients a sample is listed, from the largest to the smallest. Raises
    UserError where there is no client.
    """
    from rich import box
    from rich.table import Table

    content = _content(clients)
    histogram, sizes = np.array(content["histogram"]), np.array(content["sizes"])
    listed = np.arange(len(sizes)) if len(sizes) <= LISTED else _sample(content, LISTED)
    table = Table(title=_title(content), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("client")
    for name in ("examples", "labels", "most frequent", "its share", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    everyone = histogram.sum(axis=0) / max(histogram.sum(), 1)
    for client in listed:
        own = histogram[client]
        total = max(own.sum(), 1)
        distance = np.abs(own / total - everyone).sum() / 2 if own.any() else 0.0
        table.add_row(
            content["names"][client],
            f"{sizes[client]:,}",
            str(np.count_nonzero(own)),
            str(own.argmax()) if own.any() else "-",
            f"{own.max() / total:.0%}",
            f"{distance:.2f}",
        )
    table.caption = "distance: total variation between a client's labels and those of all"
    table.caption_justify = "left"
    return table


def _content(clients: Summary) -> Mapping[str, Any]:
    content = clients.to_json() if isinstance(clients, Clients) else clients
    if not content["sizes"]:
        raise UserError("there is no client to show: the split has none")
    return content


def _title(content: Mapping[str, Any]) -> str:
    sizes = np.array(content["sizes"])
    spread = (
        f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    )
    left_out = f", {content['left_out']:,} left out" if content["left_out"] else ""
    return (
        f"{len(sizes):,} clients of {spread} examples{left_out}; "
        f"heterogeneity {content['heterogeneity']:.2f}"
    )


def _sample(content: Mapping[str, Any], most: int) -> np.ndarray:
    """Clients from the largest to the smallest, those of one size by their most frequent label; at
    most so many, the largest and the smallest among them."""
    most_frequent = np.array(content["histogram"]).argmax(axis=1)
    order = np.lexsort([most_frequent, -np.array(content["sizes"])])
    if len(order) <= most:
        return order
    return order[np.arange(most) * (len(order) - 1) // (most - 1)]


def _grouped(histogram: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Columns of the labels in their order; the rarest, where there are many, as one last."""
    classes = histogram.shape[1]
    names = list(labels) or [str(label) for label in range(classes)]
    if len(names) != classes:
        raise UserError(f"{len(names)} names were given for {classes} labels: name each or none")
    if classes <= COLORED:
        return histogram, names
    frequent = np.sort(np.argsort(-histogram.sum(axis=0), kind="stable")[:COLORED])
    chosen = histogram[:, frequent]
    rest = histogram.sum(axis=1) - chosen.sum(axis=1)
    return np.column_stack([chosen, rest]), [*(names[label] for label in frequent), "other"]
