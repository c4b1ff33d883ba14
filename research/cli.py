"""The `research` command: thin. It reads what was asked, and calls `research.runs`.

JAX is imported only by what runs it, so that `research --help` answers at once.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from research.configuration import nearest
from research.errors import Preempted, RunError, UserError
from research.fields import Parser, change, override
from research.launching import launch
from research.parallel.supervision import tell

if TYPE_CHECKING:
    from research.experiment import Experiment

COMMANDS = {
    "train": ("CONFIG", "run a config; prints its run folder first and last"),
    "resume": ("RUN", "go on from the newest complete checkpoint of a run folder"),
    "evaluate": ("RUN", "metrics on the test split"),
    "sample": ("RUN", "text from a trained language model"),
    "export": ("RUN", "write a trained transformer as a Hugging Face folder"),
    "inspect": ("CONFIG", "what its compiled step does, without running it: memory, messages"),
    "reproduce": ("NAME", "a paper's experiment beside its numbers; without NAME, lists them"),
    "launch": ("-- train CONFIG", "several processes on this machine, as several hosts would be"),
}

STAND_BY = "stand-by"
"""How a supervisor starts its workers; nobody else does."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 success, 2 a mistake in what was asked, 1 the
    rest."""
    from research.parallel import processes

    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        status = _failed(str(error), 2)
    except RunError as error:
        status = _failed(str(error), 1)
    except Preempted:
        return Preempted.STATUS  # in the ordinary way: all leave together
    except KeyboardInterrupt:
        _failed("interrupted; what was saved is safe: go on with `research resume RUN`", 1)
        processes.end(1)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        from research.training.checkpoints import is_disk_full

        if not is_disk_full(error):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        status = _failed(
            f"no space left on the disk{where}; what was saved before is safe: free some space and "
            "go on with `research resume RUN`",
            1,
        )
    if status:
        processes.leave(status)
    return status


def _failed(message: str, status: int) -> int:
    tell(failed=message[:1000], status=status)
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else _failed("no command was given", 2)
    command, *rest = arguments
    if command not in COMMANDS and command != STAND_BY:
        raise UserError(f"there is no command `{command}`: {nearest(command, list(COMMANDS))}")
    argument, text = COMMANDS.get(command, ("", ""))
    parser = Parser(
        prog=f"research {command}",
        description=text,
        usage=f"research {command} {argument} [options]",
        allow_abbrev=False,
        add_help=False,
    )
    special = {
        "launch": launch,
        "sample": _sample,
        "export": _export,
        "inspect": _inspect,
        "reproduce": _reproduce,
        STAND_BY: _stand_by,
    }
    return special.get(command, _with_fields)(command, parser, rest)


def _help() -> str:
    lines = [
        "usage: research COMMAND ...",
        "",
        "Distributed learning in JAX: one device mesh, every way for machines to learn together.",
        "",
    ]
    for name, (argument, text) in COMMANDS.items():
        lines.append(f"  research {name + ' ' + argument:<24} {text}")
    lines += [
        "",
        "`research train CONFIG --help` explains every field of a config; any of them can be set:",
        "--run.directory, --run.steps, --run.seed, --run.log-every, --run.checkpoint-every,",
        "--run.evaluate-every, --mesh.replica, --mesh.stage, --mesh.data, --mesh.fsdp,",
        "--mesh.expert, --mesh.context, --mesh.tensor, --model.*, --data.*, --optimizer.*,",
        "--pipeline.*, --exchange.*, --asynchronous.*, --federated.*, --partition.*,",
        "--ensemble.*, --privacy.*, --attack.*.",
        "--cpu-devices N makes N virtual CPU devices. Exit status: 0 success, 2 a mistake in what",
        "was asked, 1 the rest.",
    ]
    return "\n".join(lines)


def _stand_by(command: str, parser: Parser, rest: list[str]) -> int:
    """A worker of a supervisor: imports what takes seconds, tells what it was asked for, and waits
    for its place in a generation (see research.deployment.elastic)."""
    from research.standing_by import stand_by

    parser.add_argument("--cpu-devices", type=int)
    asked, target, *others = rest
    options, fields = parser.parse_known_args(others)

    def experiment() -> "Experiment":
        from research.experiment import Experiment
        from research.training.folder import RunFolder

        path = Path(target)
        if asked == "train":
            return override(Experiment.load(path), fields, f"research {asked} {target}")
        saved = Experiment.from_json(RunFolder.existing(path).read("config"))
        return override(saved, fields, f"research {asked} {target}")

    return _run(stand_by(experiment, options.cpu_devices))


def _with_fields(command: str, parser: Parser, rest: list[str]) -> int:
    """train, resume and evaluate: a target, and the fields of an experiment."""
    target, _, fields = _target(command, parser, rest)
    from research import runs, trained
    from research.experiment import Experiment

    prog = f"research {command} {target}"
    if command == "train":
        experiment = override(Experiment.load(target), fields, prog)
        runs.train(experiment, name=target.stem)
    elif command == "resume":
        runs.resume(target, change(fields, prog))
    else:
        trained.evaluate(target, change(fields, prog))
    return 0


def _sample(command: str, parser: Parser, rest: list[str]) -> int:
    parser.add_argument("--prompt", default="", help="text to go on from")
    parser.add_argument("--tokens", type=int, default=256, help="length (tokens; default 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest (0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens only")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    target, options, fields = _target(command, parser, rest)
    from research import trained

    trained.sample(
        target,
        options.prompt,
        options.tokens,
        options.temperature,
        options.top_k,
        options.seed,
        change(fields, f"research sample {target}"),
    )
    return 0


def _export(command: str, parser: Parser, rest: list[str]) -> int:
    parser.add_argument("--to", type=Path, required=True, help="folder to write (path)")
    target, options, fields = _target(command, parser, rest)
    from research import trained

    if fields:
        raise UserError(f"unknown option {fields[0]} (see research export --help)")
    trained.export(target, options.to)
    return 0


def _inspect(command: str, parser: Parser, rest: list[str]) -> int:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--devices", type=int, help="compile for so many (as many as the mesh names)"
    )
    parser.add_argument("--topology", help="compile for TPUs that are not here, such as v5e:2x4")
    target, options, fields = _target(command, parser, rest)
    from research.experiment import Experiment

    experiment = override(Experiment.load(target), fields, f"research inspect {target}")
    if options.topology and (options.devices or options.cpu_devices):
        raise UserError("--topology brings its own devices: leave out --devices and --cpu-devices")
    from research.parallel import processes

    if not options.topology and options.cpu_devices is None:
        processes.initialize(options.devices or experiment.mesh.named_devices)
    from research.inspection import inspect_experiment
    from research.reporting.inspection import print_inspection

    inspection = inspect_experiment(experiment, options.topology)
    if options.json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        print_inspection(inspection)
    return 0


def _reproduce(command: str, parser: Parser, rest: list[str]) -> int:
    parser.add_argument("-h", "--help", action="help", help="show this message")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the experiment")
    parser.add_argument(
        "--quick", action="store_true", help="a small form in 2 minutes, which writes no results"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of the runs (the experiment's own)")
    parser.add_argument(
        "--run.directory",
        dest="directory",
        type=Path,
        help="folder of the run folders (runs/reproduce/NAME; with --quick one that is removed)",
    )
    parser.add_argument(
        "--experiments", type=Path, help="folder of experiments (experiments/ of the checkout)"
    )
    parser.add_argument("--cpu-devices", type=int, help="make so many virtual CPU devices")
    options = parser.parse_args(rest)
    from research.parallel import processes

    processes.initialize(options.cpu_devices)
    from research import reproduction

    if options.name is None:
        reproduction.list_experiments(options.experiments)
        return 0
    reproduction.reproduce(
        options.name,
        options.quick,
        options.seeds,
        options.directory,
        options.experiments,
        shlex.join(["research", command, *rest]),
    )
    return 0


def _target(
    command: str, parser: Parser, rest: list[str]
) -> tuple[Path, argparse.Namespace, list[str]]:
    """The CONFIG or RUN, the command's own options, and the words left for the experiment's fields.

    Joins the other processes, if there are any, and makes the virtual devices: all before JAX is
    used.
    """
    parser.add_argument("--cpu-devices", type=int, help="make so many virtual CPU devices")
    what = COMMANDS[command][0]
    if not rest or rest[0].startswith("-"):
        if rest[:1] in (["-h"], ["--help"]):
            parser.print_help()
            print(
                f"\nresearch {command} {what} --help explains every field of the experiment as well"
            )
            raise SystemExit(0)
        raise UserError(f"give the {what} right after `research {command}`")
    options, fields = parser.parse_known_args(rest[1:])
    if "--help" in fields or "-h" in fields:
        parser.print_help()
        print()
    from research.parallel import processes

    processes.initialize(options.cpu_devices)
    return Path(rest[0]), options, fields
