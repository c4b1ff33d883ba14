"""A run over what it sends: any metric over steps, over bytes, and over the seconds of a network.

    seconds = computing / turns + 8 · bytes / bandwidth + messages · latency

of one replica, up to a record (bandwidth in bit/s, latency in s a message; the costs of Thakur,
Rabenseifner and Gropp 2005, see `research.parallel.wire`). Nothing overlaps: computing waits while
bytes are on their way, as it does where a rule needs what it hears at once; what is hidden behind
computing (streaming DiLoCo, the buckets of an all-reduce) comes out too long. `computing` is
measured, by the speed in the records, without evaluations.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from research.configuration import from_json
from research.errors import UserError
from research.parallel.mesh import MeshConfig
from research.parallel.wire import wire_messages
from research.planning.communication import expected
from research.planning.step import Step
from research.reporting.curves import Curve, loss_name, read_curve
from research.training.folder import RunFolder

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

    from research.reporting.picture import Picture

Over = Literal["steps", "bytes"] | float
"""What a metric is drawn over: `steps`, `bytes`, or the seconds of a bandwidth (bit/s)."""
STEPS_BYTES_SECONDS: tuple[Over, ...] = ("steps", "bytes", 1e9, 1e10, 1e11)


def read_run(run: Path) -> Curve:
    """The records in the folder of a run, and how many parts of its step took turns.

    On accelerators those are the replicas of one device. Virtual devices of a CPU share its cores:
    all replicas took turns (of a single model, all parts of `data`), and each is taken to have
    such a machine to itself. Raises UserError as `read_curve`, and for virtual seconds that have a
    network in them already.
    """
    folder = RunFolder.existing(run)
    config, environment = folder.read("config"), folder.read("environment")
    server = config.get("asynchronous", {"rule": "none"})
    if server["rule"] != "none" and (server["bandwidth"] is not None or server["latency"]):
        raise UserError(
            f"the virtual seconds of {run} have a network in them already "
            "(--asynchronous.bandwidth, --asynchronous.latency): a run without them can be drawn "
            "over any network"
        )
    sizes = from_json(MeshConfig, config["mesh"], "mesh").sizes(environment["devices"])
    replicas = config["exchange"]["replicas"] or sizes["replica"]
    turns = replicas // sizes["replica"]
    if environment["backend"] == "cpu":
        turns = replicas * sizes["data"]
    return read_curve(run)._replace(turns=turns)


def of_one_model(curve: Curve, step: Step) -> Curve:
    """The curve of a single model with what a device sends over `data` for its `step`, by theory:
    the all-reduce of gradients, 2 P (n-1)/n bytes in 2 (n-1) messages.

    Such a run logs no bytes, since XLA decides what it sends; this is what the rule `every_step`,
    which learns the same, would log.
    """
    sent = sum(row.wire for row in expected(step) if "data" in row.axes)
    messages = wire_messages("all-reduce", step.mesh["data"])
    records = [
        record
        | {
            "bytes_sent_total": record["step"] * round(sent),
            "messages_sent_total": record["step"] * messages,
        }
        for record in curve.records
    ]
    return curve._replace(records=records)


def virtual_seconds(curve: Curve, bandwidth: float, latency: float = 0.0) -> list[float]:
    """Seconds from the beginning of the run to each of its records, by the equation above, over a
    network of `bandwidth` (bit/s) and `latency` (s a message).

    Where records have `virtual_seconds` of their own (asynchronous learning), those are the
    computing, and the bytes of all workers pass the one link of their server; its messages are not
    counted. Raises UserError for records without speed, bytes or messages.
    """
    if bandwidth <= 0 or latency < 0:
        raise UserError(
            f"a bandwidth of {bandwidth:g} bit/s and a latency of {latency:g} s are no network: "
            "use more than 0, and 0 or more"
        )
    computing = _computing(curve)
    of_bytes = [8 * bytes_sent / bandwidth for bytes_sent in _logged(curve, "bytes_sent_total")]
    waiting = [0.0] * len(computing)
    if latency > 0:
        waiting = [latency * messages for messages in _logged(curve, "messages_sent_total")]
    return [sum(parts) for parts in zip(computing, of_bytes, waiting, strict=True)]


def _computing(curve: Curve) -> list[float]:
    """Seconds that a replica has computed up to each record.

    The first record also has the start in it, of data and of threads: its steps are counted as
    those after it.
    """
    if all("virtual_seconds" in record for record in curve.records):
        return _logged(curve, "virtual_seconds")
    if curve.per_step is None:
        raise UserError(
            f"how many {curve.unit} a step of {curve.name} has is not known, and so not how long "
            "it lasted: give the curve a `per_step`"
        )
    speeds = _logged(curve, f"{curve.unit}_per_second")
    one = [curve.per_step / speed / curve.turns for speed in speeds]
    one[0] = one[min(1, len(one) - 1)]
    steps = [0, *(record["step"] for record in curve.records)]
    return list(
        itertools.accumulate(
            (after - before) * seconds
            for (before, after), seconds in zip(itertools.pairwise(steps), one, strict=True)
        )
    )


def _logged(curve: Curve, name: str) -> list[float]:
    missing = [record["step"] for record in curve.records if name not in record]
    if missing:
        hint = ""
        if "_sent_" in name and "virtual_seconds" not in curve.records[0]:
            hint = ": use --exchange.rule every_step, or `of_one_model` for what theory has"
        raise UserError(f"{curve.name} has no {name} at step {missing[0]}{hint}")
    return [record[name] for record in curve.records]


# Pictures ---------------------------------------------------------------------------------------


def exchange_curves(
    runs: Sequence[Path | Curve],
    metric: str = "loss",
    over: Sequence[Over] = STEPS_BYTES_SECONDS,
    latency: float = 0.0,
    path: Path | None = None,
) -> "Picture":
    """A metric of `runs` over steps, over the bytes that a replica has sent (with a server: it and
    its workers), and over seconds at some bandwidths (bit/s), in as many panels; written to `path`
    (.svg, .png, .pdf) if there is one. What has sent nothing yet is not drawn over bytes: their
    axis counts in powers of ten, as that of seconds.

    Raises UserError as `virtual_seconds`, and for no run or a metric that a run has not.
    """
    import matplotlib

    from research.reporting.picture import INK, STYLE, Picture

    curves = [run if isinstance(run, Curve) else read_run(run) for run in runs]
    if not curves:
        raise UserError("there is no run to draw: give at least one run folder")
    width = max(2.6 * len(over) + 0.4, 5.6)
    columns = min(int(width / 2), len(curves))
    with matplotlib.rc_context(STYLE):
        picture = Picture(width, 3.2 + 0.2 * math.ceil(len(curves) / columns))
        panels: Any = picture.subplots(1, len(over), sharey=True, squeeze=False)[0]
        for axes, each in zip(panels, over, strict=True):
            draw_over(axes, curves, metric, each, latency)
        panels[0].set_ylabel(_name_of(metric, curves))
        handles, names = panels[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside lower center", ncols=columns, labelcolor=INK)
    if path is not None:
        picture.save(path)
    return picture


def draw_over(
    axes: "Axes", curves: Sequence[Curve], metric: str, over: Over, latency: float
) -> None:
    """Draws a panel of `exchange_curves`."""
    from research.reporting.picture import SERIES

    for number, curve in enumerate(curves):
        with_it = [metric in record for record in curve.records]
        if not any(with_it):
            raise UserError(f"{curve.name} has no {metric}: draw a metric that it has logged")
        points = [
            (x, record[metric])
            for x, record in zip(_over(curve, over, latency), curve.records, strict=True)
            if metric in record and (x > 0 or over == "steps")
        ]
        axes.plot(
            *zip(*points, strict=True) if points else ([], []),
            color=SERIES[number % len(SERIES)],
            linestyle=("-", "--", ":")[number // len(SERIES) % 3],
            linewidth=1.2,
            marker="o" if sum(with_it) < 20 else None,
            markersize=3,
            label=curve.name,
        )
    if over != "steps":
        axes.set_xscale("log")
    axes.set_xlabel(_name_of_axis(over, latency))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _over(curve: Curve, over: Over, latency: float) -> Sequence[float]:
    if over == "steps":
        return [record["step"] for record in curve.records]
    if over == "bytes":
        return _logged(curve, "bytes_sent_total")
    return virtual_seconds(curve, over, latency)


def _name_of_axis(over: Over, latency: float) -> str:
    if over == "steps":
        return "step"
    if over == "bytes":
        return "bytes sent"
    waiting = f", {1e6 * latency:g} µs" if latency else ""
    return f"seconds at {over / 1e9:g} Gbit/s{waiting}"


def _name_of(metric: str, curves: Sequence[Curve]) -> str:
    if not metric.endswith("loss"):
        return metric.replace("_", " ")
    return metric.removesuffix("loss").replace("_", " ") + loss_name(curves)
