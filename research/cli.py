"""The `research` command: thin. It reads what was asked, and calls `research.runs`.

JAX is imported only by what runs it, so that `research --help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from research.errors import RunError, UserError

if TYPE_CHECKING:
    from research.experiment import Experiment

HELP = {
    "train": ("CONFIG", "run a config; prints its run folder first and last"),
    "resume": ("RUN", "go on from the newest complete checkpoint of a run folder"),
    "evaluate": ("RUN", "metrics on the test split"),
    "sample": ("RUN", "text from a trained language model"),
    "export": ("RUN", "write a trained transformer as a Hugging Face folder"),
    "launch": ("-- train CONFIG", "several processes on this machine, as several hosts would be"),
}


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line, as all of the command does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 success, 2 a mistake in what was asked, 1 the
    rest."""
    from research.parallel import processes

    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except (UserError, RunError) as error:
        status = 2 if isinstance(error, UserError) else 1
        if processes.is_first() or status == 1:
            print(f"error: {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: the last checkpoint stands, go on with `research resume`", file=sys.stderr)
        status = 1
    except OSError as error:
        from research.training.checkpoints import is_disk_full

        if not is_disk_full(error):
            raise
        print(
            f"error: no space left on the disk ({error.filename or 'while writing'}): free some and go "
            "on with `research resume`",
            file=sys.stderr,
        )
        status = 1
    if status:
        processes.leave(status)
    return status


def _run(arguments: list[str]) -> int:
    top = _Parser(
        prog="research",
        description="Distributed learning in JAX: one device mesh, and every way for machines to "
        "learn together on it.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (argument, text) in HELP.items():
        # add_help is ours for what takes an experiment's fields: the fields need the config first.
        parser = commands.add_parser(
            name, help=text, description=text, prog=f"research {name}", usage=_usage(name, argument)
        )
        if name == "launch":
            parser.add_argument("--processes", type=int, required=True, help="how many (processes)")
            parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- train CONFIG")
            continue
        parser.add_argument("target", metavar=argument)
        parser.add_argument("--cpu-devices", type=int, help="make so many virtual CPU devices")
        if name == "sample":
            parser.add_argument("--prompt", default="", help="text to go on from")
            parser.add_argument("--tokens", type=int, default=256, help="length (tokens)")
            parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest")
            parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
            parser.add_argument("--seed", type=int, default=0, help="of the draws")
        if name == "export":
            parser.add_argument("--to", type=Path, required=True, help="the new folder")
    known, rest = _split(top, arguments)

    if known.command == "launch":
        from research.parallel.launch import launch

        command = known.rest[1:] if known.rest[:1] == ["--"] else known.rest
        return launch(known.processes, command)

    from research.parallel import processes

    processes.initialize(known.cpu_devices)
    target = Path(known.target)
    from research import runs
    from research.experiment import Experiment

    if known.command == "train":
        experiment = _override(Experiment.load(target), rest, f"research train {target}")
        runs.train(experiment, name=target.stem)
        return 0
    change = _change(rest, f"research {known.command} {target}")
    if known.command == "resume":
        runs.resume(target, change)
    elif known.command == "evaluate":
        runs.evaluate(target, change)
    elif known.command == "sample":
        runs.sample(
            target,
            known.prompt,
            known.tokens,
            known.temperature,
            known.top_k,
            known.seed,
            change,
        )
    elif known.command == "export":
        if rest:
            raise UserError(f"unknown option {rest[0]} (see research export --help)")
        runs.export(target, known.to)
    return 0


def _usage(name: str, argument: str) -> str:
    if name == "launch":
        return "research launch --processes N -- train CONFIG [--field value ...]"
    return f"research {name} {argument} [options] [--field value ...]"


def _split(
    top: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those of the experiment.

    With a config at hand, `--help` is the experiment's: it explains every field.
    """
    asks_for_fields = (
        len(arguments) > 2
        and arguments[0] in ("train", "resume", "evaluate", "sample")
        and not arguments[1].startswith("-")
        and any(option in ("--help", "-h") for option in arguments[2:])
    )
    if not asks_for_fields:
        return top.parse_known_args(arguments)
    known, rest = top.parse_known_args([a for a in arguments if a not in ("--help", "-h")])
    return known, ["--help", *rest]


def _change(rest: list[str], prog: str) -> "Callable[[Experiment], Experiment]":
    return lambda experiment: _override(experiment, rest, prog)


def _override(experiment: "Experiment", rest: list[str], prog: str) -> "Experiment":
    """`experiment` with the fields that the command line sets."""
    if not rest:
        return experiment
    import tyro

    from research.configuration import nearest
    from research.experiment import flags

    known = flags(experiment)
    for word in rest:
        flag = word.split("=")[0].replace("_", "-")
        if not word.startswith("--"):
            continue
        positive = flag.replace(".no-", ".", 1)
        if flag not in known and positive not in known and flag != "--help":
            raise UserError(f"unknown option {word.split('=')[0]}: {_near(flag, known, nearest)}")
    try:
        changed = tyro.cli(
            type(experiment),
            default=experiment,
            args=rest,
            prog=prog,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    except SystemExit as end:
        if end.code:
            raise UserError(f"the options {' '.join(rest)} cannot be read (see {prog} --help)") from None
        raise
    changed.check()
    return changed


def _near(flag: str, known: list[str], nearest: Callable[[str, list[str]], str]) -> str:
    hint = nearest(flag, known)
    return hint if hint.startswith("did") else "see --help for all of them"


__all__ = ["fields", "main"]
