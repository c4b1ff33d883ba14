"""Options and fields on the command line: what they set, how mistakes are answered."""

import argparse
import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from research.configuration import nearest
from research.errors import UserError

if TYPE_CHECKING:
    from research.experiment import Experiment


class Parser(argparse.ArgumentParser):
    """Answers a mistake in one sentence, as all of the command does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def override(experiment: "Experiment", words: list[str], prog: str) -> "Experiment":
    """`experiment` with the fields that the command line sets. Raises UserError for a mistake."""
    if not words:
        return experiment
    import tyro

    from research.experiment import flags

    known = flags(experiment)
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if word.startswith("--") and flag not in [*known, "--help"]:
            raise UserError(f"unknown option {word.split('=')[0]}: {_nearest_flag(flag, known)}")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            changed = tyro.cli(
                type(experiment),
                default=experiment,
                args=words,
                prog=prog,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as end:
        if end.code:
            raise UserError(
                f"{_first_sentence(complaint.getvalue())} (see {prog} --help)"
            ) from None
        raise
    changed.check()
    return changed


def change(fields: list[str], prog: str) -> "Callable[[Experiment], Experiment]":
    """`override` for an experiment that is yet to be read."""
    return lambda experiment: override(experiment, fields, prog)


def _nearest_flag(flag: str, known: list[str]) -> str:
    """The flag that was meant: by its whole name, or by its last part in another section."""
    hint = nearest(flag, known)
    if hint.startswith("did"):
        return hint
    last = flag.rsplit(".", 1)[-1].removeprefix("--")
    same = [name for name in known if name.rsplit(".", 1)[-1] == last]
    return f"did you mean `{same[0]}`?" if same else "--help lists them all"


def _first_sentence(box: str) -> str:
    """What tyro says at the top of its box, on one line."""
    words: list[str] = []
    for line in box.splitlines():
        if line.startswith("╭"):
            continue
        inside = line.strip("│╰╯ ")
        if set(inside) <= {"─"}:
            break
        words.append(inside)
    return " ".join(words)
