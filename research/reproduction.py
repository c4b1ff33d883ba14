"""Reproduce a paper: train every variant with every seed, and set ours beside the paper's numbers.

An experiment is a folder of `experiments/`: `experiment.py` has `reproduction = Reproduction(...)`,
`paper.json` the paper's numbers, `README.md` what differs. This file does the rest, the same for
all: runs in run folders of their own, gone on with where they were interrupted; then the table,
`results.json`, the README's table and the figure.
"""

import ast
import runpy
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from research import runs
from research.configuration import nearest
from research.errors import Diverged, RunError, UserError
from research.experiment import Experiment
from research.learners import with_replicas
from research.parallel.processes import count
from research.reporting.ledger import (
    Measurement,
    Provenance,
    Row,
    compare,
    print_rows,
    read_paper,
    write_rows,
    write_table,
)
from research.results import Results, Run
from research.training.checkpoints import Checkpoints
from research.training.folder import RunFolder
from research.training.provenance import environment

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

__all__ = ["Measurement", "Reproduction", "Results", "Run", "names", "reproduce"]

FIGURE = "figure.svg"


@dataclass(frozen=True)
class Reproduction:
    """What an `experiment.py` has to say."""

    variants: Callable[[bool], Mapping[str, Experiment]]
    """`variants(quick)`: experiments by name, in full or in a form of 2 minutes for all together on
    2 cores. Folder and seed of their runs are set here."""
    seeds: Sequence[int]
    """Seeds of the full form, for every variant; the quick form takes the first."""
    measure: Callable[[Results], Sequence[Measurement]]
    """The rows: names of `paper.json` where the paper has the number, others where it has not."""
    draw: Callable[["Axes", Results], None]
    """The figure."""
    cpu_devices: int = 1
    """Virtual devices on a machine without accelerators, where --cpu-devices does not say."""
    for_accelerators: Collection[str] = ()
    """Variants that take hours on a CPU: they are left out where there is nothing else, and have no
    runs in the results."""
    may_diverge: bool = False
    """Whether a loss that is not finite is a result, reported as such, and no mistake: such runs
    have nan for their test metrics, and `Measurement.diverged` has their seeds."""


def names(experiments: Path) -> dict[str, str]:
    """The experiments of a folder, with the first line that each says of itself; runs none."""
    found = sorted(experiments.glob("*/experiment.py"))
    return {path.parent.name: _first_line(path) for path in found}


def list_experiments(experiments: Path | None = None) -> None:
    """Prints the experiments, a line each."""
    known = names(experiments_folder() if experiments is None else experiments)
    width = max(map(len, known), default=0)
    for name, line in known.items():
        print(f"{name:<{width}}  {line}")


def experiments_folder() -> Path:
    """`experiments/` where the command is called, else that of the checkout.

    Raises UserError where there is none.
    """
    for folder in (Path("experiments"), Path(__file__).parents[1] / "experiments"):
        if folder.is_dir():
            return folder
    raise UserError(
        "there is no folder experiments/ here: call the command in a checkout of the project, or "
        "give --experiments FOLDER"
    )


def reproduce(
    name: str,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    directory: Path | None = None,
    experiments: Path | None = None,
    command: str | None = None,
) -> list[Row]:
    """Runs the experiment `name` and prints its table; the rows are returned.

    The full form writes `results.json`, the figure and the README's table into the experiment's
    folder; `quick`, the small form of the same code, writes nothing there. Runs lie in `directory`
    (None: runs/reproduce/<name>, and for the quick form a folder that is thrown away); those that
    are finished there are not done again, and those that were interrupted are gone on with.

    Raises UserError for a name that is not known, and for what an experiment lacks; RunError for a
    run that had to stop.
    """
    experiments = experiments_folder() if experiments is None else experiments
    folder = experiments / _known(name, experiments)
    if count() > 1:
        raise UserError(
            f"research reproduce is one process, and here are {count()}: leave out `research "
            "launch`; --cpu-devices makes virtual devices"
        )
    reproduction = _load(folder / "experiment.py")
    _make_devices(reproduction.cpu_devices)
    numbers = read_paper(folder / "paper.json")
    chosen = list(seeds or (reproduction.seeds[:1] if quick else reproduction.seeds))
    if len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise UserError(f"seeds {' '.join(map(str, chosen))}: give different ones, 0 or more")
    variants = _possible(reproduction, quick)
    with ExitStack() as stack:
        if directory is None and quick:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reproduce-")))
        where = directory or Path("runs/reproduce") / name
        results = _run_all(variants, chosen, where, reproduction.may_diverge)
        measured = reproduction.measure(results)
        origin = _provenance(results, command or f"research reproduce {name}")
        rows = compare(numbers, measured, chosen, origin)
        form = "quick form, too small to judge by" if quick else f"{len(chosen)} seeds"
        print_rows(rows, f"{name} ({form})")
        _draw(reproduction, results, None if quick else folder / FIGURE)
    if quick:
        print("quick form: nothing was written into the experiment's folder")
    else:
        write_rows(folder / "results.json", rows)
        write_table(folder / "README.md", rows)
        print(f"written: {folder / 'results.json'}, {folder / FIGURE}")
    return rows


def _known(name: str, experiments: Path) -> str:
    known = list(names(experiments))
    if name not in known:
        hint = nearest(name, known)
        near = f" {hint}" if hint.startswith("did") else ""
        listed = ", ".join(known) or "none"
        raise UserError(f"there is no experiment `{name}`:{near} {experiments} has {listed}")
    return name


def _load(path: Path) -> Reproduction:
    found = runpy.run_path(str(path)).get("reproduction")
    if not isinstance(found, Reproduction):
        raise UserError(f"{path} defines no `reproduction = Reproduction(...)`")
    return found


def _possible(reproduction: Reproduction, quick: bool) -> dict[str, Experiment]:
    """The variants that this machine is for; those left out are printed."""
    variants = dict(reproduction.variants(quick))
    if jax.default_backend() != "cpu":
        return variants
    left_out = [name for name in variants if name in reproduction.for_accelerators]
    if left_out:
        print(f"left out, since they take hours without an accelerator: {'; '.join(left_out)}")
    return {name: variants[name] for name in variants if name not in left_out}


def _make_devices(cpu_devices: int) -> None:
    """Unless the command line, or whoever has used JAX before, has decided how many."""
    if jax.config.jax_num_cpu_devices == -1:  # type: ignore[attr-defined]
        with suppress(RuntimeError):  # JAX is in use
            jax.config.update("jax_num_cpu_devices", cpu_devices)


def _first_line(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except SyntaxError as error:
        return f"{path} is not Python (line {error.lineno})"
    return text.splitlines()[0] if text else ""


# The runs -----------------------------------------------------------------------------------------


def _run_all(
    variants: Mapping[str, Experiment], seeds: Sequence[int], directory: Path, may_diverge: bool
) -> Results:
    """Seed by seed, so that what there is after an interruption compares."""
    finished: dict[str, list[Run]] = {variant: [] for variant in variants}
    total = len(variants) * len(seeds)
    wanted = [(seed, variant) for seed in seeds for variant in variants]
    for number, (seed, variant) in enumerate(wanted, 1):
        print(f"[{number}/{total}] {variant}, seed {seed}", flush=True)
        path = directory / f"{variant.replace(' ', '_')}-seed{seed}"
        experiment = variants[variant]
        settings = replace(experiment.run, directory=str(path), seed=seed)
        diverged = _finish(replace(experiment, run=settings), path, may_diverge)
        finished[variant].append(Run(path, seed, diverged))
    return Results(finished)


def _finish(experiment: Experiment, path: Path, may_diverge: bool) -> bool:
    """Runs `experiment` in `path` to its end, from wherever it is there; whether it diverged."""
    experiment.check()
    try:
        if not (path / "config.json").exists():
            runs.train(experiment)
        else:
            _check_same(experiment, path)
            if _last_step(path) != experiment.run.steps:
                if may_diverge and (path / "not_finite.json").exists():
                    return True
                runs.resume(path)
    except Diverged as error:
        if not may_diverge:
            raise
        print(f"diverged: {error}", flush=True)
        return True
    last = _last_step(path)
    if last != experiment.run.steps:
        raise RunError(
            f"stopped at step {last or 0} of {experiment.run.steps} of {path}: the same command "
            "goes on from there"
        )
    return False


def _last_step(path: Path) -> int | None:
    checkpoints = Checkpoints(RunFolder(path).checkpoints)
    try:
        return checkpoints.latest()
    finally:
        checkpoints.close()


def _check_same(experiment: Experiment, path: Path) -> None:
    """Raises UserError where a run in `path` is of another experiment, naming a field."""
    here = with_replicas(experiment, experiment.mesh.build()).to_json()
    there = RunFolder(path).read("config")
    if changed := _difference(here, there):
        raise UserError(
            f"{path} holds a run of another experiment ({changed}): remove it, or choose another "
            "--run.directory"
        )


def _difference(here: Any, there: Any, where: str = "") -> str | None:
    if not (isinstance(here, dict) and isinstance(there, dict)):
        left_open = {
            "exchange.plan": "auto",
            "privacy.seed": None,
            "privacy.noise_multiplier": None,
        }
        decided = where == "run.directory" or (where in left_open and here == left_open[where])
        same = here == there or decided
        return None if same else f"{where} is {there!r}, and now {here!r}"
    for name in here | there:
        inner = f"{where}.{name}" if where else name
        if found := _difference(here.get(name), there.get(name), inner):
            return found
    return None


def _provenance(results: Results, command: str) -> Provenance:
    """Of all runs, also of what they were before they were gone on with; what differs is listed."""
    made = [environment(0)]
    if ran := [run.folder for some in results.runs.values() for run in some]:
        last = [RunFolder(folder).read("environment") for folder in ran]
        made = [e for latest in last for e in (*latest.get("earlier", []), latest)]

    def listed(values: Iterable[str]) -> str:
        return "; ".join(sorted(set(values)))

    def commit(git: dict[str, Any] | None) -> str:
        return git["commit"] + ("+changes" if git["changed"] else "") if git else "unknown"

    packages = {package: None for e in made for package in e["versions"]}
    return Provenance(
        command=command,
        hardware=listed(e["hardware"] for e in made),
        versions={p: listed(e["versions"].get(p, "none") for e in made) for p in packages},
        commit=listed(commit(e["git"]) for e in made),
    )


def _draw(reproduction: Reproduction, results: Results, path: Path | None) -> None:
    """The figure, drawn in the quick form too, so that it is known to work."""
    from research.reporting.picture import one_picture

    one_picture(
        5.6, 3.4, lambda axes: reproduction.draw(axes, results), path
    ).draw_without_rendering()
