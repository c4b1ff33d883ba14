"""What a benchmark prints and writes down: statistics of its timings, and where they come from."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import BENCHMARKS, REPOSITORY
from harness.workers import Timings

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "torch")
RESULTS = BENCHMARKS / "results"


def parser(docstring: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--quick", action="store_true", help="a smoke test: few steps, and nothing is written"
    )
    made.add_argument("--output", type=Path, help="result file (JSON; default: in results/)")
    return made


def statistics_of(values: list[float]) -> dict[str, float]:
    """Median, quartiles and minimum, in the unit of `values`."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "quarter": quarters[0],
        "three_quarters": quarters[2],
        "minimum": min(values),
        "count": len(values),
    }


def summary(timings: Timings) -> dict[str, Any]:
    """Statistics of all steps, of wall and of CPU seconds, and the median of every round."""
    every = [second for block in timings.wall for second in block]
    return {
        "seconds": statistics_of(every),
        "cpu_seconds": statistics_of([second for block in timings.cpu for second in block]),
        "round_medians": [statistics.median(block) for block in timings.wall],
    }


def paired_ratio(mine: list[list[float]], theirs: list[list[float]]) -> dict[str, float]:
    """Statistics of `median of mine / median of theirs`, one ratio a round."""
    return statistics_of(
        [statistics.median(a) / statistics.median(b) for a, b in zip(mine, theirs, strict=True)]
    )


def provenance(**more: Any) -> dict[str, Any]:
    """What somebody needs to repeat or to doubt a number."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(["python", _relative(sys.argv[0]), *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        **more,
    }


def commit() -> str | None:
    """Commit of the checkout, with `+` where files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "research", "configs", "scripts/benchmarks")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(name: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes `result` as JSON where `--output` says (default: `results/<name>.json`); `--quick`
    writes only where it is told."""
    if options.quick and options.output is None:
        print("--quick: nothing was written")
        return
    path = options.output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(result), indent=2) + "\n")
    print(f"written to {_relative(path)}")


def rounded(value: Any) -> Any:
    """`value` with every float cut to 6 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def table(header: list[str], rows: list[list[str]]) -> None:
    """Prints columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))


def goal(text: str, value: float, limit: float, unit: str = "") -> str:
    """`text: value, goal at most limit: met`."""
    met = "met" if value <= limit else "MISSED"
    return f"{text}: {value:.3g}{unit} (goal: at most {limit:g}{unit}; {met})"


def _relative(path: str | Path) -> str:
    absolute = Path(path).resolve()
    return str(absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else path)
