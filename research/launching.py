"""`research launch`: which launcher it is, and what each of them is told."""

import argparse
import platform
from pathlib import Path

from research.errors import UserError
from research.fields import Parser, change, override


def launch(command: str, parser: Parser, rest: list[str]) -> int:
    """Processes of this host, for good or as long as some are left; or asynchronous workers."""

    parser.add_argument("-h", "--help", action="help", help="show this message")
    parser.add_argument("--processes", type=int, help="on this host (processes)")
    elastic = parser.add_argument_group("elastic", "to go on when processes or hosts die")
    elastic.add_argument("--elastic", metavar="LEAST:MOST", help="processes that train together")
    elastic.add_argument("--rendezvous", metavar="HOST:PORT", help="where several hosts meet")
    elastic.add_argument("--host", help="name of this one, unlike all others (its own)")
    for flag, default, text in (
        ("gather", 15.0, "how long the first generation waits for MOST (seconds; 15)"),
        ("give-up", 300.0, "how long to wait for LEAST, or the rendezvous (seconds; 300)"),
        ("hang", 30.0, "a step may take as long, or 20 × the median (seconds; 30)"),
        ("return", 20.0, "how long a process that died stays out (seconds; 20)"),
    ):
        elastic.add_argument(f"--{flag}-seconds", type=float, default=default, help=text)
    elastic.add_argument("--no-standby", action="store_true", help="start workers when needed only")
    engine = parser.add_argument_group("engine", "for the workers of --asynchronous.rule")
    engine.add_argument("--engine", choices=["ray"], help="each is a process: an actor of Ray")
    engine.add_argument("--address", help="of a Ray cluster ($RAY_ADDRESS, or one for this run)")
    for flag, default in (("cpus", 1.0), ("gpus", 0.0)):
        text = f"of a worker, as Ray counts them ({default:g})"
        engine.add_argument(f"--worker-{flag}", type=float, default=default, help=text)
    cut = rest.index("--") if "--" in rest else len(rest)
    options = parser.parse_args(rest[:cut])
    words = rest[cut + 1 :]
    if options.engine is not None:
        return _launch_engine(options, words)
    if options.processes is None:
        raise UserError("say how many: --processes 4, or --engine ray for asynchronous workers")
    if options.elastic is None:
        if options.rendezvous is not None:
            raise UserError("--rendezvous is of an elastic launch: give --elastic LEAST:MOST too")
        from research.parallel.launch import launch as launch_processes

        return launch_processes(options.processes, words)
    from research.deployment.elastic import launch_elastic
    from research.deployment.elastic.options import Options, elastic_range
    from research.parallel import placement

    place = placement.place() if options.rendezvous is None else None
    least, most = elastic_range(options.elastic)
    return launch_elastic(
        Options(
            words,
            options.processes,
            least,
            most,
            options.rendezvous if place is None else place.coordinator,
            options.host or (place.host if place else None) or platform.node(),
            options.gather_seconds,
            options.give_up_seconds,
            options.hang_seconds,
            options.return_seconds,
            not options.no_standby,
        )
    )


def _launch_engine(options: argparse.Namespace, words: list[str]) -> int:
    """Asynchronous workers that are processes; `words` are a command with fields."""
    given = [f"--{name}" for name in ("processes", "elastic", "rendezvous") if vars(options)[name]]
    if given:
        raise UserError(
            f"{given[0]} is of a synchronous launch: with --engine ray there are as many processes "
            "as --asynchronous.workers"
        )
    if words[:1] not in (["train"], ["resume"]) or len(words) < 2:
        raise UserError(
            "give train or resume after --, as in `research launch --engine ray -- train CONFIG`"
        )
    command, target, *rest = words
    parser = Parser(prog="research launch", allow_abbrev=False, add_help=False)
    parser.add_argument("--cpu-devices", type=int)
    own, fields = parser.parse_known_args(rest)
    from research import engine
    from research.deployment.actors.ray_engine import Options
    from research.experiment import Experiment

    placed = Options(
        workers=0,
        address=options.address,
        cpus=options.worker_cpus,
        gpus=options.worker_gpus,
        hang_seconds=options.hang_seconds,
        return_seconds=options.return_seconds,
    )
    prog, path = f"research {command} {target}", Path(target)
    if command == "train":
        experiment = override(Experiment.load(path), fields, prog)
        engine.train(experiment, path.stem, placed, own.cpu_devices)
    else:
        engine.resume(path, change(fields, prog), placed, own.cpu_devices)
    return 0
