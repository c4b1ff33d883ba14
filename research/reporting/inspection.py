"""What `research inspect` prints: tables of memory, messages and shardings, and the timeline."""

import math

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from research.planning.inspection import Inspection, Placed

TIMELINE = 100
"""Slots of a timeline up to which it is printed: a longer one is in the JSON."""

WIDTH = 140
"""Columns, where no terminal says how many."""


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """To `console` (standard output): in the width of a terminal, of a file in 140 columns."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    console.print(report(inspection), highlight=False)


def report(inspection: Inspection) -> RenderableType:
    """All of it, to be printed by rich."""
    parts: list[RenderableType] = [_head(inspection), _memory(inspection), _messages(inspection)]
    if inspection.pipeline is not None:
        parts.append(_pipeline(inspection))
    parts.append(_shardings(inspection))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in inspection.warnings]
    return Group(*parts)


def size_text(size: float) -> str:
    """`size` bytes with a unit: 512 B, 1.5 KB, 3.2 GB (powers of 1000)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _head(inspection: Inspection) -> Text:
    split = " × ".join(f"{axis} {size}" for axis, size in inspection.mesh.items() if size > 1)
    devices = math.prod(inspection.mesh.values())
    lines = [
        f"mesh {split or '1 device'}: {devices} {inspection.device} device"
        f"{'s' if devices > 1 else ''}",
        f"{inspection.parameters:,} parameters; {_flops(inspection)}",
        f"step lowered in {inspection.lowering_seconds:.1f} s, compiled in "
        f"{inspection.compiling_seconds:.1f} s",
    ]
    return Text("\n".join(lines))


def _flops(inspection: Inspection) -> str:
    unit = inspection.unit.removesuffix("s")
    text = f"{inspection.flops / 1e9:.4g} GFLOPs a {unit} in matrix products"
    if inspection.model_flops:
        text += (
            f" ({inspection.flops / inspection.model_flops:.2f} of 6 N + 12 layers width context)"
        )
    return text


def _table(title: str, *columns: str, numbers: int = 0) -> Table:
    """A table whose last `numbers` columns but the very last hold numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        is_number = 0 < place <= numbers
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def _memory(inspection: Inspection) -> Table:
    memory = inspection.memory
    table = _table("memory of a device", "kind", "size", "what it is", numbers=1)
    for kind, size, text in (
        ("parameters", memory.parameters, "float32"),
        ("optimizer", memory.optimizer, ""),
        ("batch", memory.batch, ""),
        ("gradients", memory.gradients, "float32, among the temporaries"),
        ("activations", memory.activations, "the other temporaries"),
        ("total", memory.total, "arguments, temporaries, results with no place of their own"),
    ):
        table.add_row(kind, size_text(size), text)
    return table


def _messages(inspection: Inspection) -> Table:
    table = _table(
        "messages of a step",
        *("collective", "calls", "payload", "on the wire", "expected", "ratio", "by theory"),
        numbers=5,
    )
    for row in inspection.traffic:
        table.add_row(
            f"{row.kind} over {' × '.join(row.axes)}",
            f"{row.calls:,}",
            size_text(row.payload),
            size_text(row.wire),
            "-" if row.expected is None else size_text(row.expected),
            "-" if row.ratio is None else f"{row.ratio:.3f}",
            "; ".join([*row.purposes, *([f"({row.note})"] if row.note else [])]),
        )
    table.caption = "payload: of all calls; on the wire: what one device sends, in the mean"
    table.caption_justify = "left"
    return table


def _pipeline(inspection: Inspection) -> RenderableType:
    pipeline = inspection.pipeline
    assert pipeline is not None
    rounds = f" in {pipeline.rounds} rounds" if pipeline.rounds > 1 else ""
    line = (
        f"{pipeline.schedule}: {pipeline.microbatches} microbatches through {pipeline.stages} "
        f"stages{rounds}, {pipeline.ticks} ticks ({pipeline.compiled_ticks} in the program), "
        f"bubble {100 * pipeline.bubble:.1f} %"
    )
    drawn = pipeline.timeline
    if len(drawn.splitlines()[0].split()) > TIMELINE:
        return Text(line + "\n")
    return Text(f"{line}\n{drawn}\n", no_wrap=True)


def _shardings(inspection: Inspection) -> Table:
    table = _table("parameters", "name", "a device's part", "split over", numbers=1)
    for each in inspection.placed:
        table.add_row(each.name, size_text(each.bytes), _split(each))
    return table


def _split(each: Placed) -> str:
    """`[32 / stage, 4096 / fsdp, 128]`"""
    dimensions = (
        f"{size} / {axes}" if axes else str(size)
        for size, axes in zip(each.shape, each.split, strict=True)
    )
    return f"[{', '.join(dimensions)}]"
